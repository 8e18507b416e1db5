"""A bell, which wakes a task that sleeps."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fencedlock.asyncio.session import Session


class TaskBell:
    """Wakes one sleeping task, from any thread.

    A ring before the sleep is not lost, and several rings count as one.
    """

    __slots__ = ("_rung", "_session", "_sleep", "_timer")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sleep: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rung = False

    def ring(self) -> None:
        """Wake the task. If it does not sleep now, its next sleep ends at once."""
        if threading.get_ident() == self._session.thread_id:
            self._wake()
            return
        try:
            self._session.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            pass  # the loop was closed, and the task with it

    def _wake(self) -> None:
        self._rung = True
        self.wake()

    def wake(self) -> None:
        """End the sleep without a ring, so that the task checks the state of its claim."""
        sleep = self._sleep
        if sleep is not None and not sleep.done():
            sleep.set_result(None)

    async def wait(self, timeout_seconds: float) -> None:
        """Sleep until a ring or until the timeout. It may end some time before the timeout."""
        sleep: asyncio.Future[None] = self._session.loop.create_future()
        if self.begin(sleep, timeout_seconds):
            try:
                await sleep
            finally:
                self.end()

    def begin(self, sleep: asyncio.Future[Any], timeout_seconds: float) -> bool:
        """Have this future end by a ring or by the timeout, with the result None.

        Return False if the bell has rung already, or if there is no time. Otherwise the caller
        calls :meth:`end` after that.
        """
        if self._rung or timeout_seconds <= 0:
            self._rung = False
            return False
        self._sleep = sleep
        self._timer = self._session.wake_later(self, timeout_seconds)
        return True

    def end(self) -> None:
        """Record that the sleep has ended, however it has."""
        if self._timer is None:
            self._session.awake(self)
        else:
            self._timer.cancel()
        self._sleep, self._timer, self._rung = None, None, False
