"""What a lock server answers, in the words of the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Grant: TypeAlias = tuple[int, float, bool, bool]
"""The claim holds the lock:

- its token;
- the local time until which the lease is good: counted from the sending of the request, never from its answer;
- True if the hold before it ended without a release;
- True if its first lease is shorter than asked for, and should be extended soon.

A plain tuple, by which it is told from other answers: each acquisition makes one and takes it apart, which takes longer with names.
"""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else holds the lock, and the claim took no place in its queue."""


@dataclass(slots=True)
class Waiting:
    """Somebody else holds the lock, and the claim has its place in the queue."""

    asked_at: float
    """When the question was sent: the waiter is counted as alive for its span from then."""
    issued: int
    """The highest token issued when the server answered."""
    recheck_at: float
    """When the present holder's lease will have run out if it is not renewed."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The claim has no place in the queue (any more)."""


class Renewed(NamedTuple):
    """The hold stands, and its lease is good until ``deadline``."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Released:
    """The hold has ended by this request or by an earlier copy of it."""


RELEASED: Released = Released()


class NotOurs(NamedTuple):
    """The lock is free or somebody else's.

    ``ended`` is the highest token known to be released cleanly (0: none), and ``replayed`` True when an earlier copy of
    the request had no answer, so that it may be what ended the hold.
    """

    ended: int = 0
    replayed: bool = False


ClaimAnswer: TypeAlias = Grant | Busy | Waiting | Gone
RenewAnswer: TypeAlias = Renewed | NotOurs
ReleaseAnswer: TypeAlias = Released | NotOurs
