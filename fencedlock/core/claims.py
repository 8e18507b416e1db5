"""What a client claims and holds: state without I/O and threads, decided by tables and clock readings.

A :class:`Claim` is one outermost attempt of one owner on one lock. Granted, it becomes a :class:`Hold`, whose lease moves through
:data:`~fencedlock.core.lease.LEASE_TRANSITIONS`. Both know their lock as a :class:`BoundLock`, which a backend implements.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from fencedlock.core.answers import ClaimAnswer, Grant, ReleaseAnswer, Waiting
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import LEASE_TRANSITIONS, LeaseEvent, LeaseState
from fencedlock.core.schedule import Queue
from fencedlock.token import FencingToken

MOST_SPAN_SECONDS = 10.0
"""The server counts a waiter as alive for its lease after its last beat, but at most so long."""


_LOST = LeaseState.LOST


class Owner(Protocol):
    """Who claims and holds: so far, a thread of a process."""

    @property
    def number(self) -> int:
        """Told by no other owner of this process."""

    @property
    def holder(self) -> str:
        """For people: host, process and native thread id, in ASCII."""

    def alive(self) -> bool:
        """False once it has ended."""


class Waker(Protocol):
    """Wakes who sleeps for a claim."""

    rung: bool
    """True from a ring to the end of the sleep that it ends."""
    alarm: Callable[[], object] | None
    """Wakes the sleeper where it sleeps in another way than by :meth:`sleep`."""

    def ring(self) -> None:
        """Wake the sleeper, or let its next sleep end at once."""

    def nudge(self) -> None:
        """Wake the sleeper without a ring, so that it looks around."""

    def sleep(self, timeout_seconds: float) -> None:
        """Sleep until a ring or a nudge, at most so long."""

    def wait(self, timeout_seconds: float) -> None:
        """Sleep so, and take what came for a ring that was heard."""


class Signal(Protocol):
    """Tells whoever watches a hold."""

    def set(self) -> None:
        """The lease is lost."""


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

    def abandon(self, hold: Hold, timeout_seconds: float) -> None:
        """The hold is lost here: see to it that the server's lease ends too, where others' beats would keep it alive."""

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        """Forget the claim: its place, its grant, and any packet of it that is still under way."""

    def inspect(self, timeout_seconds: float) -> LockInfo:
        """Report the lock's holder and queue."""

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        """Take the lock from the hold with this token; False when it had ended before."""

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        """Issue no token up to this one any more."""


class Claim:
    """One outermost attempt of one thread on one lock; its id is never used again.

    The claiming thread, the heartbeat and the inbox all tell it what they learn; callers hold the client's mutex.
    """

    # What few claims need stands here once, for the making of a claim is on the way of each acquisition.
    bell: Waker | None = None
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
    lost_signal: Signal | None = None
    """Is set when the lease is lost. Made when somebody asks for it, because few do and a hold should be small."""
    changing: ClassVar[AbstractContextManager[Any]] = nullcontext()
    """Entered while the state changes. Here is nothing that needs it; where there are threads, it is their mutex."""

    def __init__(
        self, claim: Claim, token: int, deadline: float, abandoned: bool, handle: weakref.ref[Any], siblings: dict[int, Hold]
    ) -> None:
        self.claim: Claim = claim
        self.handle: weakref.ref[Any] = handle
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
        with self.changing:
            if operation == self.operation:
                self.deadline = deadline
            self.happened(LeaseEvent.BEAT_ANSWERED)

    def change_lease(self, lease_seconds: float, now: float) -> None:
        """From now on the lease is asked for at this length. Until the server has answered, no more than that is believed."""
        with self.changing:
            self.lasts_until = max(self.lasts_until, self.deadline)
            self.deadline = min(self.deadline, now + lease_seconds)
            self.lease_seconds = lease_seconds
            self.operation += 1

    def happened(self, event: LeaseEvent, reason: str = "") -> bool:
        """Move through the table; True when this event is what lost the lease."""
        with self.changing:
            before = self.state
            after = self.state = LEASE_TRANSITIONS.get((before, event), before)
            if after is not _LOST or before is _LOST:
                return False
            self.reason = reason
            if event is LeaseEvent.FORKED:
                self.lost_signal = None  # its lock may be held by a thread that the child does not have
            elif self.lost_signal is not None:
                self.lost_signal.set()
            return True

    def remaining(self, now: float) -> float:
        """Seconds of lease left by the local clock, 0 when it is lost."""
        return 0.0 if self.state is LeaseState.LOST else max(0.0, self.deadline - now)
