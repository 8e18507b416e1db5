"""The contract runs once per backend and per kind of contender."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fencedlock
from tests.contenders import Contender
from tests.servers import LockServer


@pytest.fixture(params=["thread", "process", "task"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(backend: LockServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


@pytest.fixture
def other(kind: str, client: fencedlock.Client, contender: Callable[..., Contender]) -> Contender:
    """A contender other than this thread."""
    return contender(kind, client)
