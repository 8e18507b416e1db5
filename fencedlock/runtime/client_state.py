"""What one client claims and holds in this process: the state that its threads share."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from fencedlock.clock import Deadline, now_seconds
from fencedlock.core.answers import ClaimAnswer
from fencedlock.core.backend import Backend, BackendFactory
from fencedlock.core.claims import Claim, Hold
from fencedlock.errors import ConfigurationError
from fencedlock.runtime.callbacks import Callbacks, Calls
from fencedlock.runtime.interrupts import make_mutex
from fencedlock.runtime.observer import Log, Observer
from fencedlock.runtime.outage import Outage
from fencedlock.runtime.owners import Dropped, learn_of_loops, new_client_id

REQUEST_SHARE_OF_LEASE = 0.3
"""The share of a lease that a request about it may wait for its answer.

So a failed request leaves time for another one.
"""

LEAST_REQUEST_SECONDS = 0.1
"""The shortest time that a request of a waiting caller may take, however short the timeout is.

So ``acquire(timeout=1e-6)`` takes a free lock.
"""


class Beats(Protocol):
    """The heartbeat of a client, as the other parts of the runtime use it."""

    dropped: Callable[[Dropped], None]
    """Receives a reference to a ``with`` statement whose end was interrupted."""

    def add(self, target: Hold | Claim, delay_seconds: float) -> None:
        """Send a beat for the target after this delay, in place of what was planned for it."""

    def begin(self, hold: Hold, delay_seconds: float, due: float) -> None:
        """Send beats for a new hold, which is among :meth:`holds` from then on."""

    def discard(self, target: Hold | Claim) -> None:
        """Send no more beats for the target."""

    def holds(self) -> list[Hold]:
        """Return all holds that get beats. The caller has the mutex of the client, or is alone."""

    def undo(
        self, what: str, action: Callable[[float], object], moot_at: Callable[[], float]
    ) -> None:
        """Repeat an action in the background until it succeeds or the lease has ended by itself.

        The action receives the request timeout in seconds.
        """

    def wake_by(self, at: float) -> None:
        """Be awake at this local time, because the backend has something to do."""

    def collect(self, holds: list[Hold]) -> None:
        """Release holds whose last handle was collected."""

    @property
    def started(self) -> bool:
        """True once the thread runs, or is about to run."""

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if no thread can be started."""

    def close_client(self, deadline: Deadline) -> None:
        """Have the thread release everything and end."""

    def stop(self, deadline: Deadline) -> None:
        """End the thread."""

    def wait(self, deadline: Deadline) -> None:
        """Wait until the thread has ended, if it was started."""


class LoopSession(Protocol):
    """What the tasks of one event loop share of one client, as the client uses it."""

    def close_from_outside(self, timeout_seconds: float) -> None:
        """Close the connections of the loop from any thread, and wait for that."""

    def close_soon(self) -> bool:
        """Have the loop close its connections, without waiting for that."""

    def is_here(self) -> bool:
        """Return True if the loop runs in the calling thread."""

    def reconnected(self) -> None:
        """Send a beat for every waiting claim of the loop now, from any thread."""

    def close_if_ended(self) -> None:
        """Close the connections, from any thread, if the loop was closed without a shutdown."""


class ClientState:
    """The claims and holds of one client in one process, and what all operations on them need.

    The operations are functions in the modules above this one:
    :mod:`~fencedlock.runtime.acquiring`, :mod:`~fencedlock.runtime.holding` and
    :mod:`~fencedlock.runtime.releasing`.
    """

    heartbeat: Beats

    def __init__(
        self,
        make_backend: BackendFactory,
        *,
        ttl: float,
        outage_timeout: float,
        callbacks: Callbacks,
        make_handle: weakref.WeakMethod[Callable[[str], Any]],
    ) -> None:
        self.ttl: float = ttl
        self.outage_timeout: float = outage_timeout
        self.callbacks: Callbacks = callbacks
        self.make_handle: weakref.WeakMethod[Callable[[str], Any]] = make_handle
        self._make_backend = make_backend
        self.observer: Observer = Log()
        self.closed: bool = False
        self.at_exit: bool = False
        """True once everything was released because the interpreter ends.

        Exit handlers that run later may still lock.
        """
        self.resources: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        """The locks by their names: :class:`fencedlock.runtime.resources.Resource`."""
        learn_of_loops()
        all_states.add(self)
        self._begin()

    def _begin(self) -> None:
        """Make everything that belongs to this process alone. A forked child makes it again."""
        self.client_id: str = new_client_id()
        # Reentrant: a destructor that the garbage collector runs in the middle of something may use
        # a lock too.
        self.mutex: AbstractContextManager[bool] = make_mutex()
        self.listening: bool = False
        self.backend: Backend = self._make_backend(self.client_id)
        self.claims: dict[str, Claim] = {}
        """The claims by their ids that a message may come for."""
        self.attaching: set[str] = set()
        """The digests of the secrets with which holds are being attached."""
        self.attempts: dict[str, str] = {}
        """Maps such digests to the claims of attempts that have had no answer yet."""
        self.calls: Calls = Calls()
        self.sessions: dict[Any, LoopSession] = {}
        """Maps each event loop whose tasks use this client to what they share."""
        self.outage: Outage = Outage(self.observer)

    def raise_if_closed(self) -> None:
        """Raise ConfigurationError if the client is closed."""
        if self.closed:
            raise ConfigurationError("this client is closed: connect() again")

    # --- how long to wait for the server

    def request_seconds(self, lease_seconds: float) -> float:
        """Return how long a request about a lease of this length may wait for its answer."""
        longest, share = (
            self.backend.request_timeout_seconds,
            REQUEST_SHARE_OF_LEASE * lease_seconds,
        )
        # min() takes longer, on the way of each release.
        return share if share < longest else longest  # noqa: FURB136

    def seconds_to_ask(self, claim: Claim, deadline: float) -> float:
        """Return how long a request of a claim may wait whose caller gives up at ``deadline``."""
        return min(
            self.request_seconds(claim.lease_seconds),
            max(LEAST_REQUEST_SECONDS, deadline - now_seconds()),
        )

    def moot_at(self, target: Claim | Hold) -> Callable[[], float]:
        """Return a function that tells when the server has forgotten the target by itself."""
        return partial(self.backend.forgets_at, target, now_seconds())

    # --- messages: this is the Listener of the backend

    def listen(self, timeout_seconds: float) -> None:
        """Open the channel by which grants arrive, and wait for it until the timeout.

        A claim takes its place in a queue after that.
        """
        self.backend.listen(self, timeout_seconds)
        self.listening = True

    def expect(self, claim: Claim) -> None:
        """Pass messages for this claim to it, and end it when the client is closed."""
        self.claims[claim.id] = claim

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """Record that a release has granted the lock to this claim.

        If nobody waits for the claim any more, it has been withdrawn, or will be.
        """
        with self.mutex:
            claim = self.claims.get(claim_id)
            if claim is None or claim.closed:
                return
            claim.rung(token, abandoned, now_seconds())
        claim.ring()

    def beat_answered(self, claim: Claim, answer: ClaimAnswer | Exception) -> bool:
        """Record the answer to a beat, and wake the waiter if it has to look.

        Return False if nobody waits for the claim any more.
        """
        with self.mutex:
            if claim.closed or claim.grant is not None:
                return False
            ring = claim.beat_answered(answer)
        if ring:
            claim.ring()
        return True

    def look_again(self, claim_id: str) -> None:
        """Have a claim ask again, or all claims of an owner, whose id is ``client/owner``.

        What they know of the lease of the holder is no longer right. If none waits, the holds of
        the owner get a beat now, because somebody may have asked for one of them.
        """
        claim = self.claims.get(claim_id)
        claims = (
            [claim]
            if claim is not None
            else [
                claim for claim in list(self.claims.values()) if claim.id.startswith(f"{claim_id}/")
            ]
        )
        for claim in claims:
            with self.mutex:
                claim.must_ask = True
            if not claim.closed:
                claim.ring()
        if not claims:
            with self.mutex:
                for hold in self.heartbeat.holds():
                    if hold.claim_id.startswith(f"{claim_id}/"):
                        self.heartbeat.add(hold, 0.0)

    def reconnected(self) -> None:
        """Send a beat for every waiting claim now, because messages may have been missed."""
        for claim in list(self.claims.values()):
            if claim.issued is not None and claim.id.startswith(f"{self.client_id}/"):
                self.heartbeat.add(claim, 0.0)
        for session in list(self.sessions.values()):
            session.reconnected()

    def maintain_by(self, at: float) -> None:
        """Have the backend called at this local time."""
        self.heartbeat.wake_by(at)


all_states: weakref.WeakSet[ClientState] = weakref.WeakSet()
"""Those of all clients of this process."""
