"""Leases and time limits of packets."""

from __future__ import annotations

import math

from fencedlock.backends.redis.connections import LEAST_WAIT_SECONDS
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError

MOST_LATE = 3
"""The number of times that a question is sent if the server calls each packet late."""


def whole_ms(lease_seconds: float) -> int:
    """Return a lease in ms, as the server is asked for it.

    It is rounded up, because it must not end there before it ends here.
    """
    return math.ceil(lease_seconds * 1000)


def left_of(timeout_seconds: float, asked_at: float) -> float:
    """Return what is left of a time limit that began at ``asked_at``, for one more question."""
    return max(LEAST_WAIT_SECONDS, asked_at + timeout_seconds - now_seconds())


def clock_jumps() -> BackendUnavailableError:
    """Return the error for a server that calls each packet late."""
    return BackendUnavailableError(
        f"the lock server's clock jumps: it called {MOST_LATE} packets in a row late"
    )
