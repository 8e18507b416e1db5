"""Wakes a thread that sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Bell:
    """Wakes one sleeping thread; rings before the sleep are not lost, several count as one.

    A bare lock wakes its waiter with less work than ``threading.Event`` does.
    """

    __slots__ = ("_lock", "alarm", "rung")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.rung: bool = False
        """True from a ring to the end of the sleep that it ends."""
        self.alarm: Callable[[], object] | None = None
        """What wakes the sleeper where it sleeps in another way than by :meth:`sleep`."""

    def ring(self) -> None:
        """Wake the sleeper, or let its next sleep end at once."""
        self.rung = True
        self.nudge()

    def nudge(self) -> None:
        """Wake the sleeper without a ring: somebody wants it to look around."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is awake already, or about to be
        alarm = self.alarm
        if alarm is not None:
            alarm()

    def sleep(self, timeout_seconds: float) -> None:
        """Sleep until a ring or a nudge, at most so long."""
        if timeout_seconds > 0:
            self._lock.acquire(timeout=min(timeout_seconds, threading.TIMEOUT_MAX))

    def wait(self, timeout_seconds: float) -> None:
        """Sleep until the bell rings, at most so long; it may end sooner."""
        self.sleep(timeout_seconds)
        self.rung = False
