"""What a client claims and holds: pure state, decided by tables and clock readings, without I/O or threads.

A :class:`Claim` is one outermost attempt of one thread on one lock. Granted, it becomes a :class:`Hold`, whose lease
moves through :data:`LEASE_TRANSITIONS`.
"""

from __future__ import annotations

import weakref
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

from fencedlock.backends.base import Grant
from fencedlock.process import in_child
from fencedlock.threads import Event, make_mutex
from fencedlock.token import FencingToken

if TYPE_CHECKING:
    from fencedlock.backends.base import BoundLock, Waiting
    from fencedlock.heartbeat import Queue
    from fencedlock.identity import Owner
    from fencedlock.locks import RLock
    from fencedlock.waiting import Bell


LEAST_TTL_SECONDS = 0.1
MOST_TTL_SECONDS = 366 * 24 * 3600.0
"""How long a lease may be."""

MOST_SPAN_SECONDS = 10.0
"""The server counts a waiter as alive for its lease after its last beat, but at most so long."""


NOT_OURS_REASON = (
    "the server says that it is not held by us any more: somebody called force_release, or the server has lost its data "
    "(a restart without persistence, a failover, FLUSHALL, an eviction), or this process was stopped for longer than its lease"
)


class LeaseState(IntEnum):
    """Where a lease stands by the knowledge of its holder."""

    HELD = auto()
    UNKNOWN = auto()  # a beat failed, the deadline has not passed: a lost packet is not a lost lock
    LOST = auto()
    RELEASED = auto()


class LeaseEvent(IntEnum):
    """What can happen to a lease."""

    BEAT_ANSWERED = auto()
    BEAT_FAILED = auto()
    NOT_OURS = auto()
    DEADLINE_PASSED = auto()
    OWNER_DIED = auto()
    FORKED = auto()  # the child has a copy of what the parent holds, and holds nothing
    RELEASED = auto()
    RELEASE_REFUSED = auto()  # the server says that it was taken from us before


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
    # Otherwise LOST and RELEASED are final: a beat's answer that comes late leaves them as they are.
}
"""The lease table. A pair that is not here changes nothing."""

_LOST = LeaseState.LOST


class Claim:
    """One outermost attempt of one thread on one lock; its id is never used again.

    The claiming thread, the heartbeat and the inbox all tell it what they learn; callers hold the client's mutex.
    """

    # What few claims need stands here once, for the making of a claim is on the way of each acquisition.
    bell: Bell | None = None
    """Wakes the thread, once it sleeps for the claim."""
    queue: Queue | None = None
    """Where the heartbeat keeps it."""
    may_exist: bool = False
    """True while the server may know of it, so that it has to be withdrawn when it is given up."""
    grant: Grant | None = None
    closed: bool = False
    """True once nobody waits for it: a grant that comes now must be withdrawn."""
    spent: bool = False
    """True once its place in the queue is gone without a grant that counts: who still waits needs a new claim."""
    must_ask: bool = False
    """True when the claiming thread should ask the server itself: its place may be gone, or the server is away."""
    issued: int | None = None
    """The highest token known to be issued when the server said "wait": a doorbell must bring a higher one."""
    alive_until: float = 0.0
    """The local time until which the server counts this waiter as alive; a hand-off grant lasts as long."""
    recheck_at: float = 0.0
    """The local time at which the present holder's lease has run out, if it is not renewed."""
    doorbell: tuple[int, bool] | None = None
    unanswered: int = 0
    """What the backend has to remember of packets that had no answer, and may still be executed; 0 when there is none."""
    anchor: Any = None
    """What the backend ties the claim to: with etcd, its lease."""

    def __init__(self, claim_id: str, bound: BoundLock, owner: Owner, lease_seconds: float, fair: bool, patient: bool) -> None:
        self.id: str = claim_id
        self.bound: BoundLock = bound
        self.owner: Owner = owner
        self.lease_seconds: float = lease_seconds
        self.fair: bool = fair
        self.patient: bool = patient
        """True if it will wait when it can't have the lock at once."""

    @property
    def span_seconds(self) -> float:
        """The server counts a waiter as alive for so long after its last beat."""
        return self.lease_seconds if self.lease_seconds < MOST_SPAN_SECONDS else MOST_SPAN_SECONDS  # noqa: FURB136 - min() takes longer

    @property
    def beat_every_seconds(self) -> float:
        """How often a waiter beats: three times in its span."""
        return self.span_seconds / 3

    def wants_beats(self) -> bool:
        """True while a thread waits for it."""
        return not self.closed

    def ring(self) -> None:
        """Wake its thread, if it sleeps."""
        if self.bell is not None:
            self.bell.ring()

    def granted(self, answer: Grant) -> None:
        """The server answered a question of this claim with a grant."""
        self.grant = answer

    def waiting(self, answer: Waiting) -> None:
        """The server answered that the claim waits; a doorbell that overtook this answer counts now."""
        asked_at, issued, self.recheck_at = answer.asked_at, answer.issued, answer.recheck_at
        if self.issued is None or issued > self.issued:
            self.issued = issued
        self.alive_until = max(self.alive_until, asked_at + self.span_seconds)
        if self.doorbell is not None:
            token, abandoned = self.doorbell
            self.doorbell = None
            self.rung(token, abandoned, asked_at)

    def rung(self, token: int, abandoned: bool, now: float) -> None:
        """A doorbell came: take the grant, or remember or ask where it can't be trusted.

        A doorbell can be as old as the network is slow: the grant it tells of may have lapsed, and another may hold the
        lock. So its token must be greater than all that were issued when the server last said "wait", and the
        server must still have counted this waiter as alive.
        """
        if self.grant is not None:
            return
        if self.issued is None:
            self.doorbell = (token, abandoned)
        elif token <= self.issued:
            return
        elif now < self.alive_until:
            self.grant = token, self.alive_until, abandoned, True
        else:
            self.must_ask = True


class Hold:
    """A granted claim, with its depth (reentrancy count) and its lease."""

    depth: int = 1
    operation: int = 0
    """Rises with every change of the depth or of the lease's length, so that a late packet can't undo a later one."""
    queue: Queue | None = None
    """Where the heartbeat keeps it."""
    state: LeaseState = LeaseState.HELD
    reason: str = ""
    lasts_until: float = 0.0
    """The local time until which the server may keep it, if it did not hear of a shorter lease."""
    _lost_event: Event | None = None

    def __init__(
        self, claim: Claim, token: int, deadline: float, abandoned: bool, handle: weakref.ref[RLock], siblings: dict[int, Hold]
    ) -> None:
        self.claim: Claim = claim
        self.handle: weakref.ref[RLock] = handle
        self.siblings: dict[int, Hold] = siblings
        """The holds of this lock in this process, by the number of the owner; this one is among them until it is unwound."""
        self.number: int = token
        self.abandoned: bool = abandoned
        self.deadline: float = deadline
        self.lease_seconds: float = claim.lease_seconds

    @property
    def claim_id(self) -> str:
        """The claim's id."""
        return self.claim.id

    @property
    def bound(self) -> BoundLock:
        """The lock."""
        return self.claim.bound

    @property
    def owner(self) -> Owner:
        """The thread that holds it."""
        return self.claim.owner

    @property
    def anchor(self) -> Any:
        """As the claim's."""
        return self.claim.anchor

    def wants_beats(self) -> bool:
        """True while the lease stands."""
        return self.state is LeaseState.HELD or self.state is LeaseState.UNKNOWN

    @property
    def token(self) -> FencingToken:
        """The fencing token, the same from the first acquire to the last release."""
        return FencingToken(self.bound.name, self.number)

    def extend(self, deadline: float, operation: int) -> None:
        """A beat, or a nested operation, was answered: the lease is good until then.

        ``operation`` is the hold's when the question was packed. An answer to an older question says nothing of the lease: a
        renewal has overtaken it, perhaps for a shorter one.
        """
        with _changing:
            if operation == self.operation:
                self.deadline = deadline
            self.happened(LeaseEvent.BEAT_ANSWERED)

    def change_lease(self, lease_seconds: float, now: float) -> None:
        """From now on the lease is asked for at this length. Until the server has answered, no more than that is believed."""
        with _changing:
            self.lasts_until = max(self.lasts_until, self.deadline)
            self.deadline = min(self.deadline, now + lease_seconds)
            self.lease_seconds = lease_seconds
            self.operation += 1

    def happened(self, event: LeaseEvent, reason: str = "") -> bool:
        """Move through the table; True when this event is what lost the lease."""
        with _changing:
            before = self.state
            after = self.state = LEASE_TRANSITIONS.get((before, event), before)
            if after is not _LOST or before is _LOST:
                return False
            self.reason = reason
            if event is LeaseEvent.FORKED:
                self._lost_event = None  # its lock may be held by a thread that the child does not have
            elif self._lost_event is not None:
                self._lost_event.set()
            return True

    def remaining(self, now: float) -> float:
        """Seconds of lease left by the local clock, 0 when it is lost."""
        return 0.0 if self.state is LeaseState.LOST else max(0.0, self.deadline - now)

    @property
    def lost_event(self) -> Event:
        """Set when the lease is lost; made on first use, for few ask and a hold should be small."""
        with _changing:
            if self._lost_event is None:
                self._lost_event = Event()
            if self.state is LeaseState.LOST:
                self._lost_event.set()
            return self._lost_event


_changing = make_mutex()  # reentrant: a destructor that the garbage collector runs inside may use a lock too
in_child(_changing._at_fork_reinit)
