"""The answers of a lock server, as types that do not depend on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Grant: TypeAlias = tuple[int, float, bool, bool]
"""The claim holds the lock. The fields are:

- its token;
- the local time until which the lease is valid: it is counted from the time at which the request
  was sent, never from the answer;
- True if the hold before it ended without a release;
- True if its first lease is shorter than the claim asked for, and has to be extended soon.

It is a plain tuple, because each acquisition makes one and takes it apart, which takes longer with
a named tuple. A grant is recognized by its type: no other answer to a claim is a tuple.
"""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another claim holds the lock, and this claim has taken no place in the queue."""


@dataclass(slots=True)
class Waiting:
    """Another claim holds the lock, and this claim has a place in the queue."""

    asked_at: float
    """The local time at which the request was sent. The server counts the waiter as alive for its
    span from then on.
    """
    issued: int
    """The highest token that had been issued when the server answered."""
    recheck_at: float
    """The local time at which the lease of the present holder ends unless it is renewed."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The claim has no place in the queue, or has lost it."""


class Renewed(NamedTuple):
    """The lease of the hold was extended until ``deadline``."""

    deadline: float
    wanted: str | None = None
    """The reason for which somebody has asked the holder to release the lock."""


@dataclass(frozen=True, slots=True)
class Released:
    """This request, or an earlier copy of it, has ended the hold."""


RELEASED: Released = Released()


class NotOurs(NamedTuple):
    """The hold does not have the lock: the lock is free, or another claim holds it.

    ``ended`` is the highest token that is known to have been released cleanly, or 0 if there is
    none. ``replayed`` is True if an earlier copy of the request had no answer, because that copy
    may have ended the hold.
    """

    ended: int = 0
    replayed: bool = False


ClaimAnswer: TypeAlias = Grant | Busy | Waiting | Gone
RenewAnswer: TypeAlias = Renewed | NotOurs
ReleaseAnswer: TypeAlias = Released | NotOurs
