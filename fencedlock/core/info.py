"""What is reported of a lock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiter:
    """One waiting claim, as the server has it."""

    owner: str
    holder: str
    """Host, process and native thread id."""
    remaining: float
    """Seconds until its place is given up if it sends no beat."""


@dataclass(frozen=True, slots=True)
class LockInfo:
    """What the server knows of one lock at one moment."""

    name: str
    locked: bool
    owner: str | None
    """The id of the claim that holds it."""
    holder: str | None
    """Host, process and native thread id of the holder."""
    token: int | None
    count: int
    """The holder's reentrancy depth, 0 when the lock is free."""
    remaining: float
    """Seconds of lease left, 0 when the lock is free."""
    issued: int | None
    """The highest token ever issued, as far as the server remembers."""
    waiters: tuple[Waiter, ...]
    """The queue, in order of arrival."""
    held_since: float | None = None
    """When the present hold began, in seconds since 1970: by the server's clock (Redis), or by the
    holder's (etcd). None when free.
    """
