"""What a lock server must be able to do, in the words of the library. Each backend implements it.

A :class:`Backend` is one server as one client sees it. :meth:`Backend.bind` gives a
:class:`BoundLock`, the operations on one named lock. All times are this process's
(:func:`fencedlock.clock.now_seconds`); all tokens are numbers.

Every operation may raise :class:`~fencedlock.BackendUnavailableError`, which means that the outcome
is unknown, and
:class:`~fencedlock.BackendError`, which means that the server refused and nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from fencedlock.core.answers import ClaimAnswer, RenewAnswer
from fencedlock.core.claims import BoundLock, Claim, Hold, Waker


class Listener(Protocol):
    """Receives the messages that come without a request."""

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """A release has granted the lock to this claim."""

    def look_again(self, claim_id: str) -> None:
        """A waiting claim has to ask again, because the lease of the holder has changed.

        ``client/owner`` means all claims of an owner.
        """

    def reconnected(self) -> None:
        """Messages of grants may have been missed. Every waiting claim has to send a beat now."""

    def maintain_by(self, at: float) -> None:
        """Have :meth:`Backend.maintain` called at this local time or earlier."""


class Backend(Protocol):
    """One lock server from the point of view of one client."""

    request_timeout_seconds: float
    """How long a request waits for its answer at most. A request about a short lease waits less."""

    def bind(self, name: str) -> BoundLock:
        """Return the operations on one lock, without I/O.

        Raises ConfigurationError for an invalid name.
        """

    def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        """Keep the places of waiting claims in the queue, in one exchange.

        A beat never takes a new place.
        """

    def renew(
        self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False
    ) -> list[RenewAnswer | Exception]:
        """Extend the leases of these holds and store their depths, in one exchange.

        A lease gets the length that the hold's latest operation asks for; no older packet shortens
        it. With ``exact``, it begins now, even if it was renewed a moment ago.
        """

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        """Return the local time at which the server has forgotten the target by itself, if its last beat was not later than ``since``."""

    def saw(self, name: str, token: int, now: float) -> None:
        """Record a token that a message brought.

        This client gets no token up to it any more, whatever the server forgets.

        Tokens in its own answers the backend sees by itself.
        """

    def inherit(self, parent: Backend) -> None:
        """In a forked child, take over what the backend of the parent knows of tokens."""

    def listen(self, listener: Listener, timeout_seconds: float) -> None:
        """Open the connection on which messages of grants arrive, and wait for it until the timeout. Without it, waiters ask more often."""

    def wait(self, bell: Waker, timeout_seconds: float) -> None:
        """Let the calling thread sleep until the bell rings or until the timeout.

        The thread may read incoming messages meanwhile.
        """

    def lock_names(self, prefix: str) -> Iterator[str]:
        """Return the names of the locks that are held or waited for now."""

    def maintain(self, now: float) -> float | None:
        """Do the work that is due, for example close idle connections.

        Return the local time of the next call, or None.
        """

    def ping(self, timeout_seconds: float) -> None:
        """Send a request that has no effect, and wait for the answer."""

    def check_settings(self, timeout_seconds: float) -> list[str]:
        """Return a sentence for each setting of the server that endangers locks."""

    def close(self, timeout_seconds: float) -> None:
        """Close all connections, which also ends waiting for messages.

        Wait for threads until the timeout.
        """

    def forget_connections(self) -> None:
        """In a forked child, close the copies of the connections of the parent.

        A connection lives as long as any copy is open.
        """


BackendFactory: TypeAlias = Callable[[str], Backend]
"""A function that makes the backend of a client from the id of the client, without I/O."""
