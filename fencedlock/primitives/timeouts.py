"""Reads the arguments ``blocking`` and ``timeout`` as ``threading`` does."""

from __future__ import annotations

import math
import operator
import threading

FOR_EVER = math.inf

MOST_CLOCK_SECONDS = 2**63 / 1e9
"""The longest time, in seconds, that CPython can count in nanoseconds. It refuses a longer timeout
before it checks anything else about it.
"""


def seconds_to_wait(blocking: bool, timeout: float) -> float:
    """Return the seconds to wait, infinity for -1, after the checks of ``threading.RLock.acquire``.

    The errors have the same texts as there.
    """
    if not isinstance(timeout, float):
        timeout = operator.index(timeout)
    if math.isnan(timeout):
        raise ValueError("Invalid value NaN (not a number)")
    if abs(timeout) > MOST_CLOCK_SECONDS:
        raise OverflowError("timeout value is too large")
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0 and timeout != -1:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    if not blocking:
        return 0.0
    return FOR_EVER if timeout == -1 else float(timeout)
