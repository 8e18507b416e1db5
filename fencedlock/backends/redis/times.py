"""Leases and time limits, as packets have them."""

from __future__ import annotations

import math

from fencedlock.backends.redis.connections import LEAST_WAIT_SECONDS
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError

MOST_LATE = 3
"""A question that came late is asked again so often."""


def whole_ms(lease_seconds: float) -> int:
    """A lease as the server is asked for it: rounded up, for it must not end there before it ends here."""
    return math.ceil(lease_seconds * 1000)


def left_of(timeout_seconds: float, asked_at: float) -> float:
    """What is left of a time limit that began then, for one question more."""
    return max(LEAST_WAIT_SECONDS, asked_at + timeout_seconds - now_seconds())


def clock_jumps() -> BackendUnavailableError:
    """The error for a server to which each packet is late."""
    return BackendUnavailableError(
        f"the lock server's clock jumps: it called {MOST_LATE} packets in a row late"
    )
