"""The lock table: what this process holds and waits for on one lock server, and how that changes."""

from __future__ import annotations

import logging
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from fencedlock.clock import Deadline, now_seconds
from fencedlock.core.answers import RELEASED, Grant, NotOurs, Renewed
from fencedlock.core.backend import Backend, BackendFactory
from fencedlock.core.claims import BoundLock, Claim, Hold
from fencedlock.core.lease import NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    FencedLockError,
    LockLostError,
    NotOwnedError,
)
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.cooperation import raise_if_patched_too_late
from fencedlock.runtime.heartbeat import SOON_SECONDS, Heartbeat
from fencedlock.runtime.losses import Losses
from fencedlock.runtime.outage import Outage
from fencedlock.runtime.owners import Owner, new_claim_id, new_client_id, this_thread
from fencedlock.runtime.pauses import pause_seconds
from fencedlock.runtime.process import CopiedProcessError, become_own, in_child, own
from fencedlock.runtime.threads import Event, make_mutex
from fencedlock.runtime.waiting import (
    LEAST_REQUEST_SECONDS,
    REQUEST_SHARE_OF_LEASE,
    Wait,
    ask,
    raise_if_ended,
)

logger: logging.Logger = logging.getLogger("fencedlock")

WITHDRAW_SECONDS = 0.25
"""A caller who gives up waits so long for the withdrawal; after that it goes on in the
background.
"""

CLOSE_SECONDS = 5.0
"""Closing a client waits so long for its server, at the most, and so does the end of the
interpreter for all clients together.
"""

LOOK_SECONDS = 0.002
"""How often closing looks whether releases that had begun are done."""

_HELD, _LOST, _RELEASED = LeaseState.HELD, LeaseState.LOST, LeaseState.RELEASED
_NEVER = float("inf")


# Reentrant: a destructor that the garbage collector runs inside may use a lock too.
_changing = make_mutex()
in_child(_changing._at_fork_reinit)
Hold.changing = _changing


def lost_event(hold: Hold) -> Event:
    """An event that is set when the lease of the hold is lost; the same one each time."""
    with hold.changing:
        event = hold.lost_signal
        if not isinstance(event, Event):
            event = hold.lost_signal = Event()
        if hold.state is _LOST:
            event.set()
        return event


class Resource:
    """One named lock as this client knows it; all handles of the name share it, and it lives as long as they do."""

    def __init__(self, table: LockTable, name: str) -> None:
        self.table: LockTable = table
        self.name: str = name
        self.bound: BoundLock = table.backend.bind(name)
        self.holds: dict[int, Hold] = {}
        """By the number of the owner. More than one only while a lost hold is not unwound yet."""

    def __del__(self) -> None:
        held = [
            hold
            for hold in getattr(self, "holds", {}).values()
            if hold.state in (LeaseState.HELD, LeaseState.UNKNOWN)
        ]
        if held and own[0]:
            self.table.heartbeat.collect(held)
            warnings.warn(
                f"the last handle of held lock {self.name!r} was collected; it is released",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class Terms:
    """What a handle asks for, each time.

    It is not the handle itself, for that is of one class or another: Python is slower where it
    meets both in turn.
    """

    __slots__ = (
        "fair",
        "handle",
        "latest",
        "lease_seconds",
        "request_seconds",
        "resource",
        "table",
    )

    def __init__(
        self, handle: object, resource: Resource, lease_seconds: float, fair: bool
    ) -> None:
        self.handle: weakref.ref[Any] = weakref.ref(handle)
        self.table: LockTable = resource.table
        self.resource: Resource = resource
        self.lease_seconds: float = lease_seconds
        self.request_seconds: float = resource.table.request_seconds(lease_seconds)
        self.fair: bool = fair
        self.latest: Hold | None = None
        """The last hold of this handle."""


class LockTable:
    """The claims and holds of one client in one process.

    Locks, the heartbeat, the inbox and waiting threads all act on it.
    """

    def __init__(
        self,
        make_backend: BackendFactory,
        *,
        ttl: float,
        outage_timeout: float,
        on_lost: Callable[[Any, str], object] | None,
        make_handle: weakref.WeakMethod[Callable[[str], Any]],
    ) -> None:
        self.ttl: float = ttl
        self.outage_timeout: float = outage_timeout
        self.on_lost: Callable[[Any, str], object] | None = on_lost
        self._make_backend = make_backend
        self._make_handle = make_handle
        self._resources: weakref.WeakValueDictionary[str, Resource] = weakref.WeakValueDictionary()
        self.closed: bool = False
        self.at_exit: bool = False
        """True once everything was released because the interpreter ends. Handlers that run later
        may still lock.
        """
        self._begin()

    def _begin(self) -> None:
        """Everything that belongs to this process alone: made anew in a forked child."""
        self.client_id: str = new_client_id()
        # Reentrant: a destructor that the garbage collector runs in the middle of something may use
        # a lock too.
        self.mutex: AbstractContextManager[bool] = make_mutex()
        self.listening: bool = False
        self.backend: Backend = self._make_backend(self.client_id)
        self.heartbeat: Heartbeat = Heartbeat(self)
        self._claims: dict[str, Claim] = {}
        self._losses = Losses()
        self.outage: Outage = Outage()
        self._ended = False
        self._will_close = False
        """True once a child of multiprocessing has been asked to release everything when it
        ends.
        """

    def become_child(self) -> None:
        """In a forked child: hold nothing, and be a client of its own."""
        for hold in self.heartbeat.holds():
            hold.happened(LeaseEvent.FORKED, "the process was forked, and the parent holds it")
        waiting = list(self._claims.values())
        self.backend.forget_connections()
        self._begin_again()
        # A signal handler has forked in the middle of a wait: the child's thread claims anew.
        for claim in waiting:
            claim.ring()

    def _begin_again(self) -> None:
        before = self.backend
        self._begin()
        self.backend.inherit(before)
        for resource in list(self._resources.values()):
            resource.holds = {}
            resource.bound = self.backend.bind(resource.name)

    def close(self) -> None:
        """Release all holds, end all waiting, and stop the threads. Closing twice does nothing.

        The heartbeat's thread does it, if there is anything to do, because no signal handler
        interrupts that one.
        """
        become_own()
        self.closed = True
        deadline = Deadline(CLOSE_SECONDS)
        if self.heartbeat.started or self._claims:
            try:
                self.heartbeat.close_table(deadline)
                self.heartbeat.start()
            except RuntimeError:  # no thread can be started
                self._end(deadline)
            self.heartbeat.wait(deadline)
        else:
            self._end(deadline)

    def begin_exit(self, deadline: Deadline) -> None:
        """The interpreter ends: have the heartbeat's thread release everything, beside those of other clients."""
        if not self.closed:
            self.at_exit = True
            self.heartbeat.close_table(deadline)

    def finish_exit(self, deadline: Deadline) -> None:
        """Wait for that, or do it.

        Exit handlers that run later may lock, and find another beginning.
        """
        if not self.closed:
            self.at_exit = True
            self.heartbeat.wait(deadline)
            self._end(deadline)
            self._begin_again()

    def end_in_background(self, deadline: Deadline) -> None:
        """Called by the heartbeat's thread: the client was dropped, or its closing was interrupted, or the interpreter ends."""
        if not self.at_exit:
            self.closed = True
        self._end(deadline)

    def _end(self, deadline: Deadline) -> None:
        if self._ended:
            return
        reachable = True
        for claim in list(self._claims.values()):
            reachable = self.give_up(claim, reachable=reachable and deadline.left() > 0)
            claim.ring()
        for hold in self.heartbeat.holds():
            reachable = self._end_quickly(hold, deadline, reachable=reachable)
        while self.heartbeat.holds() and deadline.left() > 0:
            # What is left is being released by its owner just now, who needs a connection.
            time.sleep(LOOK_SECONDS)
        self.heartbeat.stop(deadline)
        self.backend.close(deadline.left())
        self._losses.close()
        self._ended = True

    def _end_quickly(self, hold: Hold, deadline: Deadline, *, reachable: bool) -> bool:
        """Release a hold when the client closes; False if the server does not answer, so that the others need not wait for it."""
        if hold.siblings.pop(hold.owner.number, None) is None:
            return reachable  # its owner is releasing it just now
        self._forget(hold, LeaseEvent.RELEASED)
        if reachable and now_seconds() < hold.deadline and deadline.left() > 0:
            try:
                hold.bound.release(
                    hold, min(self.request_seconds(hold.lease_seconds), deadline.left())
                )
            except FencedLockError as error:
                logger.warning(
                    "fencedlock: lock %r was not released, and its lease runs out: %s",
                    hold.bound.name,
                    error,
                )
                return False
        return reachable

    def drop(self) -> None:
        """The client was collected: close everything, without waiting for anything and without a mutex."""
        if self.heartbeat.started:
            self.heartbeat.close_table(Deadline(CLOSE_SECONDS))
        else:  # so nothing is held
            self.closed = True
            self.backend.close(0.0)

    def starting(self) -> None:
        """The heartbeat starts: from now on there may be something to release at exit.

        A child of multiprocessing runs its finalizers when it ends, but before Python 3.13 no
        atexit functions.
        """
        if self._will_close:
            return
        self._will_close = True
        for package in ("multiprocessing", "billiard"):  # billiard is Celery's
            processes, util = (
                sys.modules.get(f"{package}.process"),
                sys.modules.get(f"{package}.util"),
            )
            if processes is None or util is None:
                continue
            if getattr(processes.current_process(), "_parent_pid", None) is not None:
                util.Finalize(None, _close_if_alive, args=(weakref.ref(self),), exitpriority=100)

    def raise_if_closed(self) -> None:
        """Raise ConfigurationError after :meth:`close`."""
        if self.closed:
            raise ConfigurationError("this client is closed: connect() again")

    def resource(self, name: str) -> Resource:
        """What all handles of this name share.

        Raises ConfigurationError for what can't be a name.
        """
        self.raise_if_closed()
        with self.mutex:
            resource = self._resources.get(name) if isinstance(name, str) else None
            if resource is None:
                made = Resource(self, name)
                # A destructor may have made one meanwhile.
                resource = self._resources.setdefault(name, made)
            return resource

    def acquire(
        self, terms: Terms, owner: Owner, timeout_seconds: float, cancel: Cancellation | None
    ) -> bool:
        """Acquire for the calling thread, its owner, which does not hold the lock.

        A timeout of 0 means one try.
        """
        raise_if_patched_too_late()
        if self.closed or self.at_exit:
            raise_if_ended(
                self, terms.resource.name, None
            ) if self.at_exit else self.raise_if_closed()
        patient = timeout_seconds > 0
        deadline = now_seconds() + timeout_seconds if timeout_seconds != _NEVER else _NEVER
        if cancel is not None:
            cancel.raise_if_cancelled(terms.resource.name)
        while True:
            claim = Claim(
                new_claim_id(self.client_id, owner.number),
                terms.resource.bound,
                owner,
                terms.lease_seconds,
                terms.fair,
                patient,
            )
            try:
                seconds = (
                    terms.request_seconds
                    if deadline == _NEVER or not patient
                    else self.seconds_to_ask(claim, deadline)
                )
                answer = ask(self, claim, patient and self.listening, seconds)
                grant = (
                    answer
                    if type(answer) is tuple
                    else Wait(self, claim, deadline, cancel).for_grant(answer)
                )
                if grant is not None and self._enter(terms, owner, claim, grant):
                    return True
                self.give_up(claim)
            except CopiedProcessError:
                become_own()  # by a fork in C, which told nobody
                owner = this_thread.owner
                continue
            except BaseException as error:
                self._leave(terms, claim)
                self.give_up(claim, reachable=not isinstance(error, BackendUnavailableError))
                raise
            if grant is None and (not claim.spent or now_seconds() >= deadline):
                return False
            # The client was closed, or the grant lapsed on its way: ask anew.
            raise_if_ended(self, terms.resource.name, cancel)

    def _enter(self, terms: Terms, owner: Owner, claim: Claim, grant: Grant) -> bool:
        """Make the grant a hold; False if it lapsed on its way to us, and must not be used."""
        token, deadline, abandoned, brief = grant
        now = now_seconds()
        beat_after = claim.lease_seconds / 3
        if brief:
            self.backend.saw(claim.bound.name, token, now)
            beat_after = min(SOON_SECONDS, (deadline - now) / 3)
        if deadline <= now:
            return False
        holds = terms.resource.holds
        hold = Hold(claim, token, deadline, abandoned, terms.handle, holds)
        # A claim or a hold, but never both: of both, whoever closes the client would withdraw the
        # claim while the hold is still good.
        if self._claims:
            self._claims.pop(claim.id, None)
        holds[owner.number] = hold
        self.heartbeat.begin(hold, beat_after, now + beat_after)
        # Whoever closes the client says so first, and looks for holds then: so one of us sees the
        # other.
        if self.closed:
            self._forget(hold, LeaseEvent.RELEASED)
            return False
        if claim.bell is not None:  # it has waited, so it may be beaten for
            self.heartbeat.discard(claim)
        terms.latest = hold
        return True

    def _leave(self, terms: Terms, claim: Claim) -> None:
        """Take back what _enter did, when Ctrl-C came in its middle."""
        for hold in list(terms.resource.holds.values()):
            if hold.claim_id == claim.id:
                self._forget(hold, LeaseEvent.RELEASED)

    def give_up(self, claim: Claim, *, reachable: bool = True) -> bool:
        """Nobody waits for the claim any more: see to it that nothing of it stays on the server.

        Without ``reachable``, or if the server does not answer at once (False), the background does
        so.
        """
        seconds = self.request_seconds(claim.lease_seconds)
        try:
            with self.mutex:
                claim.closed = True
                self._claims.pop(claim.id, None)
            self.heartbeat.discard(claim)
            if not claim.may_exist:
                return reachable
            if reachable:
                claim.bound.withdraw(claim, min(WITHDRAW_SECONDS, seconds))
                return True
        except FencedLockError:
            pass
        except BaseException:
            claim.closed = True
            self._withdraw_later(claim)
            raise
        self._withdraw_later(claim)
        return False

    def _withdraw_later(self, claim: Claim) -> None:
        action = partial(claim.bound.withdraw, claim)
        self.heartbeat.undo(
            f"the withdrawal of a claim on lock {claim.bound.name!r}", action, self._moot_at(claim)
        )

    def _moot_at(self, target: Claim | Hold) -> Callable[[], float]:
        """When the server will have forgotten by itself what is to be undone now."""
        return partial(self.backend.forgets_at, target, now_seconds())

    def deepen(self, hold: Hold) -> None:
        """A nested acquire: one level more, if the lease stands."""
        self.raise_if_lost(hold)
        self._change_depth(hold, 1)

    def undeepen(self, hold: Hold) -> None:
        """A nested release: one level less.

        A lost lease is reported at once, not only at the last release.
        """
        try:
            self.raise_if_lost(hold)
        except LockLostError:
            hold.depth -= 1
            raise
        self._change_depth(hold, -1)

    def _change_depth(self, hold: Hold, change: int) -> None:
        """Change the depth here and write it down on the server.

        The lease is ours by the local clock, so an unanswered question does not decide: the next
        beat carries the depth. An exception of a signal handler finds the depth changed or not, and
        the server is told by the next beat.
        """
        before = hold.depth
        try:
            hold.depth = before + change
            hold.operation += 1
            if hold.state is not LeaseState.UNKNOWN:
                self._tell(hold, self.request_seconds(hold.lease_seconds))
        except BackendUnavailableError as error:
            hold.happened(LeaseEvent.BEAT_FAILED)
            self.outage.began(error)
            self.heartbeat.add(hold, 0.0)
        except BaseException as error:
            # A nested acquire that raised did not happen; a nested release did.
            hold.depth = before + min(change, 0)
            hold.operation += 1
            if not isinstance(error, LockLostError):
                self.heartbeat.add(hold, 0.0)
            raise

    def set_depth(self, hold: Hold, depth: int) -> None:
        """Return to a depth of old at once, as ``Condition.wait`` does."""
        if depth > 1:
            self._change_depth(hold, depth - 1)

    def renew(self, hold: Hold, lease_seconds: float) -> None:
        """Extend the lease now, and make it so long from now on."""
        self.raise_if_lost(hold)
        timeout_seconds = self.request_seconds(min(hold.lease_seconds, lease_seconds))
        try:
            hold.change_lease(lease_seconds, now_seconds())
            self._tell(hold, timeout_seconds, manual=True)
        except LockLostError:
            raise
        except BaseException as error:
            self.heartbeat.add(hold, 0.0)
            if isinstance(error, BackendError):
                error.lock, error.token, error.owner = hold.bound.name, hold.token, hold.claim_id
            raise
        self.heartbeat.add(hold, lease_seconds / 3)

    def _tell(self, hold: Hold, timeout_seconds: float, *, manual: bool = False) -> None:
        """Send the hold's depth and lease, and learn whether it stands.

        Raises LockLostError, BackendError.

        It is asked twice at most, and by a manual renewal as often as there is time: for others,
        the next beat tells the server.
        """
        operation, failures, give_up_at = hold.operation, 0, now_seconds() + timeout_seconds
        while True:
            (answer,) = self.backend.renew([hold], timeout_seconds, exact=manual)
            failures += 1
            if not isinstance(answer, BackendUnavailableError):
                break
            if failures == 1:
                continue
            left = give_up_at - now_seconds()
            if left <= 0 or not manual:
                break
            time.sleep(min(left, pause_seconds(failures)))
        if isinstance(answer, Renewed):
            hold.extend(answer.deadline, operation)
        elif isinstance(answer, Exception):
            try:
                raise answer
            finally:
                # An error in a variable of a frame that it has passed keeps all frames alive.
                del answer
        else:
            self.report_lost(hold, LeaseEvent.NOT_OURS, NOT_OURS_REASON)
            raise self._lost_error(hold)

    def release(self, hold: Hold) -> None:
        """The last release. Raises LockLostError when the lease had ended before."""
        if hold.state is not _HELD or now_seconds() >= hold.deadline:
            try:
                self.raise_if_lost(hold)
            except LockLostError:
                self._forget(hold, LeaseEvent.RELEASED)
                if hold.claim.ticket.unanswered or now_seconds() < hold.lasts_until:
                    # An old packet may still be under way, or the server not know how short the
                    # lease was.
                    self._release_later(hold)
                raise
        try:
            claim = hold.claim
            if hold.siblings.pop(claim.owner.number, None) is not hold:
                return  # whoever closes the client has it, and releases it
            if hold.state is not _LOST:  # _unwind, spelt out, for it is on the way of each release
                hold.state = _RELEASED
            answer = claim.bound.release(hold, self.request_seconds(hold.lease_seconds), 2)
            self.heartbeat.discard(hold)  # after the release, for somebody else waits for it
        except BaseException as error:
            self._forget(hold, LeaseEvent.RELEASED)
            self._release_later(hold)
            if not isinstance(error, FencedLockError):
                raise
            logger.warning(
                "fencedlock: the release of lock %r had no answer; trying again until its lease "
                "ends: %s",
                hold.bound.name,
                error,
            )
            return
        # "Not ours" to a first copy means that the hold was taken from us. To a later copy it may
        # mean that the first one ended it; or that the lease ran out while we asked, which harms
        # nobody: the body was done.
        if answer is RELEASED:
            return
        assert isinstance(answer, NotOurs)
        if not (
            answer.replayed and (answer.ended >= hold.number or now_seconds() >= hold.deadline)
        ):
            self.report_lost(hold, LeaseEvent.RELEASE_REFUSED, NOT_OURS_REASON)
            raise self._lost_error(hold)

    def _release_later(self, hold: Hold) -> None:
        action, moot_at = partial(hold.bound.release, hold), self._moot_at(hold)
        self.heartbeat.undo(
            f"the release of lock {hold.bound.name!r}",
            action,
            lambda: max(moot_at(), hold.lasts_until),
        )

    def release_dropped(self, hold: Hold) -> None:
        """Go up one level for a ``with`` statement whose end was interrupted before it could begin; called by the heartbeat."""
        if not hold.wants_beats() or hold.siblings.get(hold.owner.number) is not hold:
            return
        if hold.depth > 1:
            hold.depth -= 1
            hold.operation += 1
            self.heartbeat.add(hold, 0.0)
        elif hold.siblings.pop(hold.owner.number, None) is hold:
            self._forget(hold, LeaseEvent.RELEASED)
            self._release_later(hold)

    def release_collected(self, hold: Hold) -> None:
        """Release a hold whose last handle was collected; called by the heartbeat."""
        if hold.wants_beats():
            logger.warning(
                "fencedlock: the last handle of held lock %r was collected; it is released",
                hold.bound.name,
            )
            self._forget(hold, LeaseEvent.RELEASED)
            self._release_later(hold)

    def report_lost(self, hold: Hold, event: LeaseEvent, reason: str) -> None:
        """The lease has ended without a release: tell whoever wants to know."""
        if not hold.happened(event, reason):
            return
        self.heartbeat.discard(hold)
        logger.warning("fencedlock: lock %r was lost: %s", hold.bound.name, reason)
        if event is LeaseEvent.OWNER_DIED:
            hold.siblings.pop(hold.owner.number, None)
        if event in (LeaseEvent.OWNER_DIED, LeaseEvent.DEADLINE_PASSED):
            self.heartbeat.undo(
                f"the end of lost lock {hold.bound.name!r}",
                partial(hold.bound.abandon, hold),
                self._moot_at(hold),
            )
        handle = hold.handle()
        callback = (handle and handle._on_lost) or self.on_lost
        if callback is None:
            return
        if handle is None:
            # The one that took it is gone, and another one keeps the lock.
            make_handle = self._make_handle()
            handle = make_handle and make_handle(hold.bound.name)
        if handle is not None:
            self._losses.tell(callback, handle, reason)

    def _forget(self, hold: Hold, event: LeaseEvent) -> None:
        """The owner is done with the hold, however it ended."""
        self._unwind(hold, event)
        self.heartbeat.discard(hold)

    @staticmethod
    def _unwind(hold: Hold, event: LeaseEvent) -> None:
        """From now on the owner does not hold the lock."""
        number = hold.owner.number
        if hold.siblings.get(number) is hold:
            # Another thread, which closes the client, may do the same.
            hold.siblings.pop(number, None)
        hold.happened(event)

    def raise_if_lost(self, hold: Hold) -> None:
        """Raise LockLostError if the lease has ended, by the local clock or by what the server has said. No I/O."""
        if hold.state is not LeaseState.LOST and now_seconds() >= hold.deadline:
            self.report_lost(
                hold, LeaseEvent.DEADLINE_PASSED, "its lease ended before a beat was answered"
            )
        if hold.state is LeaseState.LOST:
            raise self._lost_error(hold)
        if hold.state is LeaseState.RELEASED:
            raise NotOwnedError(
                f"cannot release un-acquired lock ({hold.bound.name!r})", lock=hold.bound.name
            )

    @staticmethod
    def _lost_error(hold: Hold) -> LockLostError:
        return LockLostError(
            f"lock {hold.bound.name!r} was lost while held: {hold.reason}. Somebody else may have "
            f"held it meanwhile: what was written without a check of token {hold.token} needs to "
            "be looked at",
            lock=hold.bound.name,
            token=hold.token,
            owner=hold.claim_id,
        )

    # --- for the heartbeat, the inbox and waiting threads

    def request_seconds(self, lease_seconds: float) -> float:
        """How long a request about a lease of this length may wait for its answer."""
        longest, share = (
            self.backend.request_timeout_seconds,
            REQUEST_SHARE_OF_LEASE * lease_seconds,
        )
        # Min() takes longer, on the way of each release
        return share if share < longest else longest  # noqa: FURB136

    def seconds_to_ask(self, claim: Claim, deadline: float) -> float:
        """How long a question of this claim may wait for its answer, whose caller gives up at ``deadline``."""
        return min(
            self.request_seconds(claim.lease_seconds),
            max(LEAST_REQUEST_SECONDS, deadline - now_seconds()),
        )

    def listen(self, timeout_seconds: float) -> None:
        """See to it that doorbells arrive, before a claim takes its place in a queue; wait for that at most so long."""
        self.backend.listen(self, timeout_seconds)
        self.listening = True

    def expect(self, claim: Claim) -> None:
        """A doorbell may come for this claim, or the end of the client."""
        self._claims[claim.id] = claim

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        """A release handed the lock to this claim.

        One that nobody waits for any more has been, or will be, withdrawn.
        """
        with self.mutex:
            claim = self._claims.get(claim_id)
            if claim is None or claim.closed:
                return
            claim.rung(token, abandoned, now_seconds())
        claim.ring()

    def look_again(self, claim_id: str) -> None:
        """What this waiting claim, or all of an owner whose id this is, was told of the holder's lease is no longer right."""
        claim = self._claims.get(claim_id)
        claims = (
            [claim]
            if claim is not None
            else [
                claim
                for claim in list(self._claims.values())
                if claim.id.startswith(f"{claim_id}/")
            ]
        )
        for claim in claims:
            with self.mutex:
                claim.must_ask = True
            if not claim.closed:
                claim.ring()

    def reconnected(self) -> None:
        """Doorbells may have been missed: every waiting claim beats now."""
        for claim in list(self._claims.values()):
            if claim.issued is not None:
                self.heartbeat.add(claim, 0.0)

    def maintain_by(self, at: float) -> None:
        """The backend has something to do at this time."""
        self.heartbeat.wake_by(at)


def _close_if_alive(table: weakref.ref[LockTable]) -> None:
    alive = table()
    if alive is not None:
        become_own()
        deadline = Deadline(CLOSE_SECONDS)
        alive.begin_exit(deadline)
        alive.finish_exit(deadline)
