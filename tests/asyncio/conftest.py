"""Locks for tasks on a server of each kind, and helpers of their tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fencedlock
from tests.servers import LockServer


@pytest.fixture
def client(backend: LockServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


async def eventually(condition: Callable[[], Awaitable[Any]], timeout: float = 60) -> Any:  # noqa: ASYNC109
    """Wait until the condition is true, and return its value."""
    give_up_at = time.monotonic() + timeout
    while not (value := await condition()):
        assert time.monotonic() < give_up_at, "it did not come to pass"
        await asyncio.sleep(0.002)
    return value


async def waiting(lock: Any, count: int) -> None:
    """Wait until this many claims wait for the lock."""

    async def are() -> bool:
        return len((await lock.info()).waiters) == count

    await eventually(are)
