"""What a lock server must be able to do, in the words of the library. Each backend implements it.

A :class:`Backend` is one server as one client sees it. :meth:`Backend.bind` gives a :class:`BoundLock`, the operations on one named
lock. All times are this process's (:func:`fencedlock.clock.now_seconds`); all tokens are numbers.

Every operation may raise :class:`~fencedlock.BackendUnavailableError`, which means that the outcome is unknown, and
:class:`~fencedlock.BackendError`, which means that the server refused and nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from fencedlock.core.answers import ClaimAnswer, RenewAnswer
from fencedlock.core.claims import BoundLock, Claim, Hold, Waker


class Listener(Protocol):
    """Who is told of what comes in without being asked for."""

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """A release handed the lock to this claim."""

    def look_again(self, claim_id: str) -> None:
        """What this waiting claim was told of the holder's lease is no longer right; or all claims of an owner, by ``client/owner``."""

    def reconnected(self) -> None:
        """Doorbells may have been missed: every waiting claim should beat now."""

    def maintain_by(self, at: float) -> None:
        """Call :meth:`Backend.maintain` at this local time, or before."""


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

    def wait(self, bell: Waker, timeout_seconds: float) -> None:
        """Let the calling thread sleep until the bell rings, at most so long. It may read what comes in meanwhile."""

    def lock_names(self, prefix: str) -> Iterator[str]:
        """The names of the locks that are held or waited for now."""

    def maintain(self, now: float) -> float | None:
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
