"""The states of a lease, the events that change them, and the table of transitions."""

from __future__ import annotations

from enum import IntEnum, auto

from fencedlock.errors import ConfigurationError

LEAST_TTL_SECONDS = 0.1
MOST_TTL_SECONDS = 366 * 24 * 3600.0
"""The longest lease, in seconds. The shortest is ``LEAST_TTL_SECONDS``."""

NOT_OURS_REASON = (
    "the server says that it is not held by us any more: somebody called force_release, or the "
    "server has lost its data (a restart without persistence, a failover, FLUSHALL, an eviction), "
    "or this process was stopped for longer than its lease"
)


HELD_TOO_LONG_REASON = "it was held for longer than its max_hold, so its lease was not renewed"


class LeaseState(IntEnum):
    """The state of a lease, as far as its holder knows."""

    HELD = auto()
    # A beat has failed, but the deadline has not passed: a lost packet does not mean a lost lock.
    UNKNOWN = auto()
    LOST = auto()
    RELEASED = auto()


class LeaseEvent(IntEnum):
    """What can happen to a lease."""

    BEAT_ANSWERED = auto()
    BEAT_FAILED = auto()
    NOT_OURS = auto()
    DEADLINE_PASSED = auto()
    OWNER_DIED = auto()
    FORKED = auto()  # this process is a forked child: it has a copy of the hold, but not the lock
    RELEASED = auto()
    RELEASE_REFUSED = auto()  # the server says that the lock was taken from us before the release


LEASE_TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (LeaseState.HELD, LeaseEvent.BEAT_ANSWERED): LeaseState.HELD,
    (LeaseState.HELD, LeaseEvent.BEAT_FAILED): LeaseState.UNKNOWN,
    (LeaseState.HELD, LeaseEvent.NOT_OURS): LeaseState.LOST,
    (LeaseState.HELD, LeaseEvent.DEADLINE_PASSED): LeaseState.LOST,
    (LeaseState.HELD, LeaseEvent.OWNER_DIED): LeaseState.LOST,
    (LeaseState.HELD, LeaseEvent.FORKED): LeaseState.LOST,
    (LeaseState.HELD, LeaseEvent.RELEASED): LeaseState.RELEASED,
    (LeaseState.UNKNOWN, LeaseEvent.BEAT_ANSWERED): LeaseState.HELD,
    (LeaseState.UNKNOWN, LeaseEvent.BEAT_FAILED): LeaseState.UNKNOWN,
    (LeaseState.UNKNOWN, LeaseEvent.NOT_OURS): LeaseState.LOST,
    (LeaseState.UNKNOWN, LeaseEvent.DEADLINE_PASSED): LeaseState.LOST,
    (LeaseState.UNKNOWN, LeaseEvent.OWNER_DIED): LeaseState.LOST,
    (LeaseState.UNKNOWN, LeaseEvent.FORKED): LeaseState.LOST,
    (LeaseState.UNKNOWN, LeaseEvent.RELEASED): LeaseState.RELEASED,
    (LeaseState.RELEASED, LeaseEvent.RELEASE_REFUSED): LeaseState.LOST,
    # Otherwise LOST and RELEASED are final: the late answer to a beat does not change them.
}
"""The next state for each state and event. A pair that is missing here leaves the state as it
is.
"""


def checked_ttl(ttl: float) -> float:
    """Return the length of a lease in seconds as a float.

    Raises ConfigurationError if it is not a valid length.
    """
    return checked_seconds("ttl", ttl, LEAST_TTL_SECONDS, MOST_TTL_SECONDS)


def checked_seconds(name: str, seconds: float, least: float, most: float) -> float:
    """Return the value of a setting as a float.

    Raises ConfigurationError if it is not a number of seconds within these bounds.
    """
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not least <= seconds <= most
    ):
        raise ConfigurationError(f"{name} must be {seconds_wanted(least, most)}, not {seconds!r}")
    return float(seconds)


def seconds_wanted(least: float, most: float) -> str:
    """Return a phrase for error messages that says which values :func:`checked_seconds` accepts."""
    return f"a number of seconds from {least:g} to {most:.0f}"


def checked_max_hold(max_hold: float | None, lease_seconds: float) -> float | None:
    """Return the longest time, in seconds, for which a hold is renewed. None if there is no limit.

    Raises ConfigurationError if it is no number of seconds, or shorter than the lease.
    """
    if max_hold is None:
        return None
    return checked_seconds("max_hold", max_hold, lease_seconds, MOST_TTL_SECONDS)


def checked_keep(keep: float, setting: str = "keep") -> float:
    """Return for how many seconds a lock stays closed after its release.

    Raises ConfigurationError if it is no number of seconds.
    """
    return checked_seconds(setting, keep, 0.0, MOST_TTL_SECONDS)
