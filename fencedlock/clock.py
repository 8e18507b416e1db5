"""The one clock of this library: seconds that go on while the machine sleeps, and that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

now_seconds: Callable[[], float] = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds since some moment in the past.

``CLOCK_BOOTTIME`` where the platform has it, for it counts a suspended machine's time, which a lease does too;
else ``CLOCK_MONOTONIC``. Never compared across hosts.
"""
