"""Claims and holds as plain state, which changes by a table of transitions and clock readings.

A :class:`Claim` is one outermost attempt of one owner on one lock. When it is granted, it gets a
:class:`Hold`, whose lease changes its state by the table
:data:`~fencedlock.core.lease.LEASE_TRANSITIONS`. Both refer to their lock as a :class:`BoundLock`,
which a backend implements. Nothing here does I/O or starts threads.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol

from fencedlock.core.answers import ClaimAnswer, Gone, Grant, ReleaseAnswer, Waiting
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import LEASE_TRANSITIONS, LeaseEvent, LeaseState
from fencedlock.core.roles import Owner, Signal, Ticket, Waker
from fencedlock.core.schedule import Schedule
from fencedlock.token import FencingToken

MOST_SPAN_SECONDS = 10.0
"""The longest time, in seconds, for which a waiter counts as alive after its last beat. With a
shorter lease, that is the length of the lease.
"""


LATEST_SHARE = 4.0
"""A first beat that is so many times its delay late is still sent, whatever the limit."""

LAST_BEAT_SHARE = 0.05
"""The share of a lease by which the last beat before the limit comes early."""

_LOST = LeaseState.LOST


class BoundLock(Protocol):
    """The operations on one named lock.

    ``timeout_seconds`` is the time for which an operation may wait for the server.
    """

    @property
    def name(self) -> str:
        """The name of the lock, as the user wrote it."""

    def begin(self) -> Ticket:
        """Return the ticket of a new claim on this lock, without I/O."""

    def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        """Ask the server for the lock.

        The question may be repeated, because one claim always gets the same grant.

        If the lock is not free and ``join`` is true, the claim takes a place in the queue, or
        keeps the place that it has.
        """

    def release(self, hold: Hold, timeout_seconds: float, attempts: int = 1) -> ReleaseAnswer:
        """End the hold, and grant the lock to the first waiter that can be reached."""

    def keep(
        self, hold: Hold, keep_seconds: float, timeout_seconds: float, attempts: int = 1
    ) -> ReleaseAnswer:
        """End the hold, but let nobody have the lock for this time. No beat extends it.

        The next hold does not count as the successor of an abandoned one.
        """

    def detach(
        self, hold: Hold, digest: str, lease_seconds: float, timeout_seconds: float
    ) -> ReleaseAnswer:
        """Detach the hold from its claim, and let it last for this time.

        Whoever knows the secret with this digest can attach it. The call may be repeated.
        """

    def attach(self, claim: Claim, digest: str, timeout_seconds: float) -> ClaimAnswer:
        """Make the claim the owner of the hold that was detached with this digest.

        The answer is a grant with the token of that hold, or that it is gone. One claim always gets
        the same answer.
        """

    def abandon(self, hold: Hold, timeout_seconds: float) -> None:
        """End the lease of a lost hold on the server, if the server does not end it by itself.

        This is needed where several holds share a lease, because the beats of the others would keep
        the lost hold alive.
        """

    def withdraw(self, claim: Claim, timeout_seconds: float) -> None:
        """Remove the claim from the server: its place in the queue and its grant.

        After that, a packet of the claim that is still under way has no effect.
        """

    def inspect(self, timeout_seconds: float) -> LockInfo:
        """Return the holder and the queue of the lock."""

    def force_release(self, token: int, timeout_seconds: float) -> bool:
        """Take the lock from the hold with this token.

        Return False if that hold had already ended.
        """

    def request_release(self, reason: str, timeout_seconds: float) -> bool:
        """Ask the holder to release the lock. Return False if nobody holds it.

        The holder learns of the reason by the answer to its next beat.
        """

    def raise_floor(self, token: int, timeout_seconds: float) -> None:
        """Make every later token of the lock greater than this one."""


class Claim:
    """One attempt of one owner to acquire one lock. Its id is never used again.

    The claiming thread, the heartbeat and the inbox tell the claim what they learn. They do so
    under the mutex of the client.
    """

    # These are class attributes because every acquisition makes a claim, and few claims need them.
    bell: Waker | None = None
    """Wakes the claiming thread. None until the thread has to wait."""
    schedule: Schedule | None = None
    """The schedule of the heartbeat in which the claim stands."""
    loop: weakref.ref[Any] | None = None
    """The event loop of the task that claims. None if a thread does."""
    may_exist: bool = False
    """True while the server may know the claim. Then the claim has to be withdrawn if it is given
    up.
    """
    grant: Grant | None = None
    closed: bool = False
    """True when no thread waits for the claim any more. A grant that arrives afterwards has to be
    withdrawn.
    """
    spent: bool = False
    """True when the place in the queue is gone and no grant has come. A thread that still waits
    needs a new claim.
    """
    must_ask: bool = False
    """True when the claiming thread has to ask the server, because the place may be gone or the
    server does not answer.
    """
    issued: int | None = None
    """The highest token that was issued when the server last answered "wait", or None if it has not
    answered so. A valid doorbell has a higher token.
    """
    alive_until: float = 0.0
    """The local time until which the server counts this waiter as alive. A grant by hand-off lasts
    until then.
    """
    recheck_at: float = 0.0
    """The local time at which the lease of the present holder ends unless it is renewed."""
    doorbell: tuple[int, bool] | None = None
    """The token and the ``abandoned`` of a doorbell that came before the answer "wait"."""

    def __init__(
        self,
        claim_id: str,
        bound: BoundLock,
        owner: Owner,
        lease_seconds: float,
        fair: bool,
        patient: bool,
    ) -> None:
        self.id: str = claim_id
        self.bound: BoundLock = bound
        self.ticket: Any = bound.begin()
        """A :class:`Ticket`. Only the backend knows its class."""
        self.owner: Owner = owner
        self.lease_seconds: float = lease_seconds
        self.fair: bool = fair
        self.patient: bool = patient
        """True if the owner waits when the lock is not free."""

    @property
    def span_seconds(self) -> float:
        """The time for which the server counts the waiter as alive after its last beat."""
        # min() takes longer.
        return self.lease_seconds if self.lease_seconds < MOST_SPAN_SECONDS else MOST_SPAN_SECONDS  # noqa: FURB136

    @property
    def beat_every_seconds(self) -> float:
        """The time between two beats of a waiter: a third of its span."""
        return self.span_seconds / 3

    def wants_beats(self) -> bool:
        """Return True while a thread waits for the claim."""
        return not self.closed

    def ring(self) -> None:
        """Wake the claiming thread if it sleeps."""
        if self.bell is not None:
            self.bell.ring()

    def granted(self, answer: Grant) -> None:
        """Record a grant that the server has answered."""
        self.grant = answer

    def waiting(self, answer: Waiting) -> None:
        """Record the answer "wait".

        A doorbell that came before this answer is taken into account now.
        """
        asked_at, issued, self.recheck_at = answer.asked_at, answer.issued, answer.recheck_at
        if self.issued is None or issued > self.issued:
            self.issued = issued
        self.alive_until = max(self.alive_until, asked_at + self.span_seconds)
        if self.doorbell is not None:
            token, abandoned = self.doorbell
            self.doorbell = None
            self.rung(token, abandoned, asked_at)

    def beat_answered(self, answer: ClaimAnswer | Exception) -> bool:
        """Record the answer to a beat. Return True if the owner has to look at the claim.

        The claim is still waited for, and has no grant yet.
        """
        recheck_before = self.recheck_at
        if isinstance(answer, tuple):
            self.granted(answer)
        elif isinstance(answer, Waiting):
            self.waiting(answer)
        elif isinstance(answer, (Gone, Exception)):
            self.must_ask = True
        return self.must_ask or self.grant is not None or self.recheck_at < recheck_before

    def rung(self, token: int, abandoned: bool, now: float) -> None:
        """Record a doorbell: take the grant, keep the doorbell, or have the thread ask the server.

        The doorbell may be old: the grant may have ended, and another owner may hold the lock. So
        its token has to be greater than all tokens that were issued when the server last answered
        "wait", and the server must still count this waiter as alive. If the server has not answered
        yet, the doorbell is kept until it does. If the waiter may count as dead, the thread asks
        the server.
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
    """The number of changes of the depth and of the length of the lease so far. It keeps a packet
    that arrives late from undoing a later one.
    """
    schedule: Schedule | None = None
    """The schedule of the heartbeat in which the hold stands."""
    state: LeaseState = LeaseState.HELD
    reason: str = ""
    told_at_risk: bool = False
    """True if ``on_at_risk`` was called, and neither ``on_safe`` nor ``on_lost`` since."""
    lasts_until: float = 0.0
    """The local time until which the server may keep the hold if it did not receive a request for a
    shorter lease.
    """
    renew_until: float = float("inf")
    """The local time after which the heartbeat does not renew the lease any more."""
    wanted: str | None = None
    """The reason for which somebody has asked the holder to release the lock."""
    is_detaching: bool = False
    """True once it was begun to detach the hold from its claim."""
    lost_signal: Signal | None = None
    """The signal that is set when the lease is lost. It is made on request, because few users need
    it and a hold should be small.
    """
    changing: ClassVar[AbstractContextManager[Any]] = nullcontext()
    """The context in which the state changes. The core does not need it. The runtime puts a mutex
    here, because it has threads.
    """

    def __init__(
        self,
        claim: Claim,
        token: int,
        deadline: float,
        abandoned: bool,
        handle: weakref.ref[Any],
        siblings: dict[int, Hold],
    ) -> None:
        self.claim: Claim = claim
        self.handle: weakref.ref[Any] = handle
        self.siblings: dict[int, Hold] = siblings
        """Maps the ids of owners to their holds of this lock in this process. It contains this hold
        until its owner has left it.
        """
        self.token: int = token
        self.abandoned: bool = abandoned
        self.deadline: float = deadline
        self.lease_seconds: float = claim.lease_seconds

    @property
    def claim_id(self) -> str:
        """The id of the claim."""
        return self.claim.id

    @property
    def bound(self) -> BoundLock:
        """The lock that is held."""
        return self.claim.bound

    @property
    def owner(self) -> Owner:
        """The owner of the hold."""
        return self.claim.owner

    def wants_beats(self) -> bool:
        """Return True while the lease is neither lost nor released."""
        return self.state is LeaseState.HELD or self.state is LeaseState.UNKNOWN

    @property
    def fencing_token(self) -> FencingToken:
        """The token with the name of its lock. It stays the same until the last release."""
        return FencingToken(self.bound.name, self.token)

    def extend(self, deadline: float, operation: int) -> None:
        """Record an answer to a beat or a nested operation: the lease is valid until ``deadline``.

        ``operation`` is the value of :attr:`operation` when the request was packed. If it has
        changed since, the answer says nothing about the lease, because a later request may have
        asked for a shorter one.
        """
        with self.changing:
            if operation == self.operation:
                self.deadline = deadline
            self.happened(LeaseEvent.BEAT_ANSWERED)

    def change_lease(self, lease_seconds: float, now: float) -> None:
        """Set the length of the lease for all later requests.

        Until the server has answered, the earlier of the old and the new deadline counts.
        """
        with self.changing:
            self.lasts_until = max(self.lasts_until, self.deadline)
            self.deadline = min(self.deadline, now + lease_seconds)
            self.lease_seconds = lease_seconds
            self.operation += 1

    def limit(self, max_hold_seconds: float, now: float, first_beat_seconds: float) -> None:
        """Let the lease end at ``max_hold_seconds`` from now at the latest, but for the first beat.

        The first lease of a grant by hand-off is short, and the first beat makes it whole.
        """
        seconds = max(max_hold_seconds - self.lease_seconds, LATEST_SHARE * first_beat_seconds)
        self.renew_until = now + seconds

    def next_beat_seconds(self, now: float) -> float:
        """Return after how many seconds the next beat is due, after one was answered.

        The last one before :attr:`renew_until` comes just before it.
        """
        delay = self.lease_seconds / 3
        last = (self.renew_until - now) - LAST_BEAT_SHARE * self.lease_seconds
        return last if 0 < last < delay else delay

    def happened(self, event: LeaseEvent, reason: str = "") -> bool:
        """Apply an event to the state. Return True if the event has changed it."""
        with self.changing:
            before = self.state
            after = self.state = LEASE_TRANSITIONS.get((before, event), before)
            if after is before:
                return False
            if after is not _LOST:
                return True
            self.reason = reason
            if event is LeaseEvent.FORKED:
                # Its lock may be held by a thread that the child does not have.
                self.lost_signal = None
            elif self.lost_signal is not None:
                self.lost_signal.set()
            return True

    def remaining(self, now: float) -> float:
        """Return the seconds that are left of the lease by the local clock, or 0 if it is lost."""
        return 0.0 if self.state is LeaseState.LOST else max(0.0, self.deadline - now)
