"""The only clock of this library: it counts a suspended machine's time, and nobody can set it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

now_seconds: Callable[[], float] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Return the seconds since some moment in the past.

The clock is ``CLOCK_BOOTTIME`` where the platform has it, because it counts the time for which a
machine is suspended, as a lease does. Otherwise it is ``CLOCK_MONOTONIC``. Times of different hosts
are never compared.
"""


class Deadline:
    """The point in time by which several waits together must be over."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at: float = now_seconds() + seconds

    def left(self) -> float:
        """Return the seconds until the deadline, or 0 if it has passed."""
        return max(0.0, self.at - now_seconds())
