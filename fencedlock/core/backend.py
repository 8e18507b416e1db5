"""The interface between the library and a lock server. Each backend implements it.

A :class:`Backend` is one server as one client sees it. :meth:`Backend.bind_lock` returns a
:class:`BoundLock`, the operations on one named lock. All times are local times of this process
(:func:`fencedlock.clock.now_seconds`). All tokens are numbers.

Every operation may raise :class:`~fencedlock.BackendUnavailableError`, which means that the outcome
is unknown, and :class:`~fencedlock.BackendError`, which means that the server refused and nothing
was done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol, TypeAlias

from fencedlock.core.answers import ClaimAnswer, ReleaseAnswer, RenewAnswer
from fencedlock.core.claims import BoundLock, Claim, Hold
from fencedlock.core.roles import ThreadWaker


class Listener(Protocol):
    """Receives the messages that the server sends without a request."""

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """Record that a release has granted the lock to this claim."""

    def look_again(self, claim_id: str) -> None:
        """Have a waiting claim ask again, because the lease of the holder has changed.

        The id ``client/owner`` means all claims of an owner.
        """

    def reconnected(self) -> None:
        """Send a beat for every waiting claim now, because doorbells may have been missed."""

    def maintain_by(self, at: float) -> None:
        """Have :meth:`Backend.maintain` called at this local time or earlier."""


class LoopCalls(Protocol):
    """The calls that the tasks of one event loop make to the lock server, without blocking it.

    All methods are called in the thread of the loop. They raise and return what the operations of a
    bound lock do. :meth:`release` and :meth:`withdraw` begin when they are called, the others when
    they are awaited.
    """

    async def listen(self, listener: Listener, timeout_seconds: float) -> None:
        """Open the connection on which doorbells arrive, and wait for it until the timeout."""

    async def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        """Ask for the lock once. With ``join``, take a place in its queue if it is not free."""

    def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> Awaitable[list[ClaimAnswer | Exception]]:
        """Keep the places of waiting claims in their queues."""

    def renew(self, hold: Hold, timeout_seconds: float) -> Awaitable[RenewAnswer]:
        """Extend the lease of the hold and store its depth."""

    def release(
        self,
        hold: Hold,
        keep_seconds: float,
        timeout_seconds: float,
        on_answer: Callable[[ReleaseAnswer | BaseException], object],
    ) -> None:
        """End the hold, and call ``on_answer`` with the answer or the error, in any thread."""

    def withdraw(
        self, claim: Claim, timeout_seconds: float, on_end: Callable[[bool], object]
    ) -> None:
        """Remove the claim from the server. Call ``on_end`` in any thread, with True if it was."""

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until what was asked is answered, or until the timeout."""

    def close(self) -> None:
        """Close the connections. What was not answered fails. May be called in any thread."""


class Backend(Protocol):
    """One lock server from the point of view of one client."""

    request_timeout_seconds: float
    """The longest time that a request waits for its answer, in seconds.

    A request about a short lease waits for less.
    """

    def bind_lock(self, name: str) -> BoundLock:
        """Return the operations on one lock, without I/O.

        Raises ConfigurationError for an invalid name.
        """

    def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        """Keep the places of waiting claims in their queues, in one exchange.

        Return one answer or one error for each claim. A beat never takes a new place.
        """

    def renew(
        self, holds: Sequence[Hold], timeout_seconds: float, *, exact: bool = False
    ) -> list[RenewAnswer | Exception]:
        """Extend the leases of these holds and store their depths, in one exchange.

        Return one answer or one error for each hold. A lease gets the length that the latest
        operation of the hold asks for, and no packet of an older operation shortens it. With
        ``exact``, the lease begins now, even if it was renewed a moment ago.
        """

    def forgets_at(self, target: Claim | Hold, since: float) -> float:
        """Return the local time at which the server has forgotten the target by itself.

        The caller knows that the last beat of the target was not later than ``since``.
        """

    def saw(self, name: str, token: int, now: float) -> None:
        """Record a token that a message brought.

        From then on this client gets only greater tokens, even if the server loses its data. The
        backend itself records the tokens that come in answers.
        """

    def calls_of_loop(self, loop: Any, client_id: str, threads: Executor) -> LoopCalls:
        """Return the calls for the tasks of this event loop, without I/O.

        The ids of claims that are made in the loop begin with ``client_id``, which no other loop
        has. What blocks is done by ``threads``.
        """

    def inherit(self, parent: Backend) -> None:
        """Take over, in a forked child, what the backend of the parent knows about tokens."""

    def listen(self, listener: Listener, timeout_seconds: float) -> None:
        """Open the connection on which doorbells arrive, and wait for it until the timeout.

        Without this connection, waiters ask the server more often.
        """

    def wait(self, bell: ThreadWaker, timeout_seconds: float) -> None:
        """Let the calling thread sleep until the bell rings or until the timeout.

        The backend may use the thread to read incoming messages meanwhile.
        """

    def lock_names(self, prefix: str) -> Iterator[str]:
        """Return the names of the locks that are held or waited for now."""

    def maintain(self, now: float) -> float | None:
        """Do the work that is due, for example close idle connections.

        Return the local time at which to call this again, or None if nothing is planned.
        """

    def ping(self, timeout_seconds: float) -> None:
        """Send a request that has no effect, and wait for the answer."""

    def check_settings(self, timeout_seconds: float) -> list[str]:
        """Return a sentence for each setting of the server that endangers locks."""

    def close(self, timeout_seconds: float) -> None:
        """Close all connections, which also ends the waiting for messages.

        Wait until the timeout for the threads of the backend to end.
        """

    def forget_connections(self) -> None:
        """Close, in a forked child, the copies of the connections of the parent.

        A connection stays open as long as any copy of it is open.
        """


BackendFactory: TypeAlias = Callable[[str], Backend]
"""A function that makes the backend of a client from the id of the client, without I/O."""
