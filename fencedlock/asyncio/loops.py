"""Small things that tasks and other threads do to an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def call_soon(loop: Any, function: Callable[..., object], *arguments: object) -> bool:
    """Have the loop call a function, from any thread. Return False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


def finish(future: asyncio.Future[None]) -> None:
    """Wake whoever awaits this future, in the thread of its loop."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(None)
