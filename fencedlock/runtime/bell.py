"""A bell, which wakes a thread that sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Bell:
    """Wakes one sleeping thread.

    A ring before the sleep is not lost, and several rings count as one.

    The bell is a bare lock, because that wakes its waiter with less work than ``threading.Event``.
    """

    __slots__ = ("_lock", "alarm", "rung")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.rung: bool = False
        """True from a ring until the sleep that it interrupts has ended."""
        self.alarm: Callable[[], object] | None = None
        """A function that wakes the thread if it sleeps by other means than :meth:`sleep`."""

    def ring(self) -> None:
        """Wake the thread. If it does not sleep now, its next sleep ends at once."""
        self.rung = True
        self.nudge()

    def nudge(self) -> None:
        """Wake the thread without a ring, so that it checks the state of its claim."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # the thread is awake, or is about to wake
        alarm = self.alarm
        if alarm is not None:
            alarm()

    def sleep(self, timeout_seconds: float) -> None:
        """Sleep until a ring or a nudge, or until the timeout."""
        if timeout_seconds > 0:
            self._lock.acquire(timeout=min(timeout_seconds, threading.TIMEOUT_MAX))

    def wait(self, timeout_seconds: float) -> None:
        """Sleep like :meth:`sleep`, and clear :attr:`rung` afterwards."""
        self.sleep(timeout_seconds)
        self.rung = False
