"""What a lock server must be able to do, in the words of the library: every room beside this file implements it.

A :class:`Backend` is one server as one client sees it. :meth:`Backend.bind` gives a :class:`BoundLock`, the operations on one named
lock. All times are this process's (:func:`fencedlock.clock.now_seconds`); all tokens are numbers.

Every operation may raise :class:`~fencedlock.BackendUnavailableError`, which means that the outcome is unknown, and
:class:`~fencedlock.BackendError`, which means that the server refused and nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from fencedlock.hold import Claim, Hold
    from fencedlock.waiting import Bell


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
    """When the present hold began, in seconds since 1970: by the server's clock (Redis), or by the holder's (etcd). None when free."""


class BoundLock(Protocol):
    """The operations on one named lock. Each takes the longest time, in seconds, that it may wait for the server."""

    @property
    def name(self) -> str:
        """The lock's name, as the user wrote it."""

    def acquire(self, claim: Claim, queue: bool, timeout_seconds: float) -> ClaimAnswer:
        """Ask for the lock, any number of times: the same claim gets the same grant.

        With ``queue``, a claim that can't have the lock takes its place in the queue, or keeps the one it has.
        """

    def release(self, hold: Hold, timeout_seconds: float, attempts: int = 1) -> ReleaseAnswer:
        """End the hold, and hand the lock to the first waiter that can be reached."""

    def forsake(self, hold: Hold, timeout_seconds: float) -> None:
        """The hold is lost here: see to it that the server's lease ends too, where others' beats would keep it alive."""

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        """Forget the claim: its place, its grant, and any packet of it that is still under way."""

    def inspect(self, timeout_seconds: float) -> LockInfo:
        """Report the lock's holder and queue."""

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        """Take the lock from the hold with this token; False when it had ended before."""

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        """Issue no token up to this one any more."""


class Listener(Protocol):
    """Who is told of what comes in without being asked for."""

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """A release handed the lock to this claim."""

    def look_again(self, claim_id: str) -> None:
        """What this waiting claim was told of the holder's lease is no longer right; or all claims of an owner, by ``client/owner``."""

    def reconnected(self) -> None:
        """Doorbells may have been missed: every waiting claim should beat now."""

    def tend_by(self, at: float) -> None:
        """Call :meth:`Backend.tend` at this local time, or before."""


class Backend(Protocol):
    """One lock server, as one client sees it."""

    request_timeout_seconds: float
    """The longest time one request waits for its answer; a request for a short lease waits less."""

    def bind(self, name: str) -> BoundLock:
        """Prepare the operations on one lock. Raises ConfigurationError for a name that can't be one; no I/O."""

    def beat(self, claims: Sequence[Claim], timeout_seconds: float) -> list[ClaimAnswer | Exception]:
        """Keep the places of waiting claims, in one exchange. A beat never takes a new place."""

    def renew(self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False) -> list[RenewAnswer | Exception]:
        """Extend the leases of these holds and write down their depths, in one exchange.

        A lease gets the length that the hold's latest operation asks for; no older packet shortens it. With ``exact``, it begins now,
        even if it was renewed a moment ago.
        """

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        """The local time at which the server will have forgotten this by itself, if its last beat was no later than ``since``."""

    def saw(self, name: str, token: int, now: float) -> None:
        """A doorbell brought this token of this lock: this client gets none up to it any more, whatever the server forgets.

        Tokens in its own answers the backend sees by itself.
        """

    def inherit(self, parent: Backend) -> None:
        """In a forked child: know the tokens that the parent's backend has seen."""

    def listen(self, listener: Listener, timeout_seconds: float) -> None:
        """Open the way by which grants arrive; returns once they do, or after so long. Without it, waiters are told to ask more often."""

    def wait(self, bell: Bell, timeout_seconds: float) -> None:
        """Let the calling thread sleep until the bell rings, at most so long. It may read what comes in meanwhile."""

    def lock_names(self, prefix: str) -> Iterator[str]:
        """The names of the locks that are held or waited for now."""

    def tend(self, now: float) -> float | None:
        """Do what has fallen due besides beats, as to give back connections that no call needs; when to call again, None if never."""

    def ping(self, timeout_seconds: float) -> None:
        """Ask the server for nothing but an answer."""

    def check_settings(self, timeout_seconds: float) -> list[str]:
        """What in the server's settings endangers locks, a sentence each."""

    def close(self, timeout_seconds: float) -> None:
        """Close everything; waiting for doorbells ends. Threads are waited for at most so long."""

    def forget_connections(self) -> None:
        """In a forked child: close the child's copies of the parent's connections, which live as long as any copy does."""


BackendFactory: TypeAlias = Callable[[str], Backend]
"""Makes the backend of one client from that client's id; no I/O."""
