"""The description of a lock and its queue that ``info()`` and ``inspect()`` return."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiter:
    """One claim in the queue of a lock, as the server knows it."""

    owner: str
    holder: str
    """The host, process id and native thread id of the waiting thread."""
    remaining: float
    """The seconds until its place is given up if it sends no beat."""


@dataclass(frozen=True, slots=True)
class LockInfo:
    """The state of one lock on the server at one moment.

    A lock that is kept closed by ``release(keep=...)`` counts as locked, with the owner, the holder
    and the token of the hold that has ended. A detached hold has the owner and the holder that have
    detached it.
    """

    name: str
    locked: bool
    owner: str | None
    """The id of the claim that holds the lock, None when the lock is free."""
    holder: str | None
    """The host, process id and native thread id of the holder, None when the lock is free."""
    token: int | None
    count: int
    """The depth (reentrancy count) of the hold, 0 when the lock is free."""
    remaining: float
    """The seconds that are left of the lease, 0 when the lock is free."""
    issued: int | None
    """The highest token that was ever issued for the lock, as far as the server remembers."""
    waiters: tuple[Waiter, ...]
    """The queue, in order of arrival."""
    held_since: float | None = None
    """The time at which the present hold began, in seconds since 1970: by the clock of the server
    (Redis), or by the clock of the holder (etcd). None when the lock is free.
    """
    detached: bool = False
    """True if the hold was detached and nobody has attached it yet, so that nobody renews it."""
    wanted: str | None = None
    """The reason of the last :meth:`Client.request_release` of this hold, None if there is none."""
