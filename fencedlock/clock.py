"""The one clock of this library: seconds that go on while the machine sleeps, and that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

now_seconds: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Seconds since some moment in the past.

``CLOCK_BOOTTIME`` where the platform has it, for it counts a suspended machine's time, which a
lease does too; else ``CLOCK_MONOTONIC``. Never compared across hosts.
"""


class Deadline:
    """A moment by which several waits have to be over."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at: float = now_seconds() + seconds

    def left(self) -> float:
        """Seconds until then, 0 when it has passed."""
        return max(0.0, self.at - now_seconds())
