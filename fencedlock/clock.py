"""The one clock of this library: seconds that go on while the machine sleeps, and that nobody sets."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_seconds() -> float:
    """Seconds since some moment in the past.

    ``CLOCK_BOOTTIME`` where the platform has it, for it counts a suspended machine's time, which a lease does too;
    else ``CLOCK_MONOTONIC``. Never compared across hosts.
    """
    return time.clock_gettime(_CLOCK)
