"""A bell, which wakes a task that sleeps."""

from __future__ import annotations

import asyncio

from fencedlock.asyncio.loops import call_soon, finish
from fencedlock.asyncio.session import Session


class TaskBell:
    """Wakes one sleeping task, from any thread.

    A ring before the sleep is not lost, and several rings count as one.
    """

    __slots__ = ("_rung", "_session", "_sleep")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sleep: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        """Wake the task. If it does not sleep now, its next sleep ends at once."""
        if self._session.is_here():
            self._wake()
        else:  # a loop that was closed has no task to wake
            call_soon(self._session.loop, self._wake)

    def _wake(self) -> None:
        self._rung = True
        if self._sleep is not None:
            finish(self._sleep)

    async def wait(self, timeout_seconds: float) -> None:
        """Sleep until a ring or until the timeout."""
        if self._rung or timeout_seconds <= 0:
            self._rung = False
            return
        loop = self._session.loop
        self._sleep = sleep = loop.create_future()
        timer = loop.call_later(timeout_seconds, finish, sleep)
        try:
            await sleep
        finally:
            timer.cancel()
            self._sleep, self._rung = None, False
