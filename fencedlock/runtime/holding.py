"""What the owner of a hold does with it until it releases it, and how the hold is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from fencedlock.clock import now_seconds
from fencedlock.core.answers import Renewed
from fencedlock.core.claims import Hold
from fencedlock.core.lease import HELD_TOO_LONG_REASON, NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.core.pauses import pause_seconds
from fencedlock.errors import BackendError, BackendUnavailableError, LockLostError, NotOwnedError
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.interrupts import Event, make_mutex
from fencedlock.runtime.process import in_child

# Reentrant, because a destructor that the garbage collector runs inside may use a lock too.
_changing = make_mutex()
in_child("mutexes", _changing._at_fork_reinit)
Hold.changing = _changing


def lost_event(hold: Hold) -> Event:
    """Return the event that is set when the lease of the hold is lost, always the same one."""
    with hold.changing:
        event = hold.lost_signal
        if not isinstance(event, Event):
            event = hold.lost_signal = Event()
        if hold.state is LeaseState.LOST:
            event.set()
        return event


def raise_if_lost(state: ClientState, hold: Hold) -> None:
    """Raise LockLostError if the lease has ended, by the local clock or by the server's answer.

    Raises NotOwnedError if the hold was released. No I/O.
    """
    now = now_seconds()
    if hold.state is not LeaseState.LOST and now >= hold.deadline:
        report_deadline_passed(state, hold, now)
    if hold.state is LeaseState.LOST:
        raise lost_error(hold)
    if hold.state is LeaseState.RELEASED:
        raise NotOwnedError(
            f"cannot release un-acquired lock ({hold.bound.name!r})", lock=hold.bound.name
        )


def lost_error(hold: Hold) -> LockLostError:
    """Return the error for a lost hold."""
    return LockLostError(
        f"lock {hold.bound.name!r} was lost while held: {hold.reason}. Somebody else may have held "
        f"it meanwhile: what was written without a check of token {hold.fencing_token} needs to be "
        "looked at",
        lock=hold.bound.name,
        token=hold.fencing_token,
        owner=hold.claim_id,
    )


def report_lost(state: ClientState, hold: Hold, event: LeaseEvent, reason: str) -> None:
    """Record that the lease has ended without a release, and tell the log and ``on_lost``."""
    if hold.is_detaching and event is LeaseEvent.NOT_OURS:
        return  # a beat that was sent before has come after
    call = _callback(state, hold, "on_lost")
    with hold.changing:
        if not hold.happened(event, reason):
            return
        hold.told_at_risk = False
        if call is not None:
            what = f"the lock was lost: {reason}"
            state.calls.add("on_lost", hold.bound.name, what, lambda: call(reason))
    state.heartbeat.discard(hold)
    state.observer.lost(hold)
    if event is LeaseEvent.OWNER_DIED:
        hold.siblings.pop(hold.owner.id, None)
    if event in (LeaseEvent.OWNER_DIED, LeaseEvent.DEADLINE_PASSED):
        state.heartbeat.undo(
            f"the end of lost lock {hold.bound.name!r}",
            partial(hold.bound.abandon, hold),
            state.moot_at(hold),
        )


def beat_failed(state: ClientState, hold: Hold) -> None:
    """Record that a beat was not answered or refused, and tell ``on_at_risk`` of the first one."""
    call = None if hold.told_at_risk else _callback(state, hold, "on_at_risk")
    with hold.changing:
        hold.happened(LeaseEvent.BEAT_FAILED)
        if call is not None and hold.state is LeaseState.UNKNOWN and not hold.told_at_risk:
            what = "its beats are not answered"
            state.calls.add(
                "on_at_risk", hold.bound.name, what, lambda: call(hold.remaining(now_seconds()))
            )
            hold.told_at_risk = True


def beat_answered(state: ClientState, hold: Hold, answer: Renewed, operation: int) -> None:
    """Record an answer to a beat or a nested operation, and tell ``on_safe`` if one had failed.

    Tell ``on_requested`` if somebody has asked for the lock since the last answer.
    """
    hold.extend(answer.deadline, operation)
    if hold.told_at_risk:
        tell_safe(state, hold)
    if answer.wanted is not None and answer.wanted != hold.wanted:
        _tell_requested(state, hold, answer.wanted)


def _tell_requested(state: ClientState, hold: Hold, reason: str) -> None:
    call = _callback(state, hold, "on_requested")
    with hold.changing:
        if reason == hold.wanted or not hold.wants_beats():
            return
        hold.wanted = reason
        if call is not None:
            what = f"somebody asks for it: {reason}"
            state.calls.add("on_requested", hold.bound.name, what, lambda: call(reason))


def tell_safe(state: ClientState, hold: Hold) -> None:
    """Tell ``on_safe`` that a hold of which ``on_at_risk`` was told is safe again, or released."""
    call = _callback(state, hold, "on_safe")
    with hold.changing:
        if hold.told_at_risk and hold.state in (LeaseState.HELD, LeaseState.RELEASED):
            if call is not None:
                state.calls.add("on_safe", hold.bound.name, "its beats are answered again", call)
            hold.told_at_risk = False


def _callback(state: ClientState, hold: Hold, kind: str) -> Callable[..., object] | None:
    """Return the callback of this kind, of the handle or else of the client, with the lock.

    Return None if there is none. The caller must not have the mutex in which the state changes.
    """
    handle = hold.handle()
    callback = getattr(handle and handle._callbacks, kind, None) or getattr(state.callbacks, kind)
    if callback is None:
        return None
    if handle is None and not state.closed:
        # The handle that took the lock is gone, and another one keeps the lock alive.
        make_handle = state.make_handle()
        handle = make_handle and make_handle(hold.bound.name)
    return None if handle is None else handle._caller(callback, hold)


def report_deadline_passed(state: ClientState, hold: Hold, now: float) -> None:
    """Record that the deadline of the lease has passed, which makes the hold lost."""
    too_long = now > hold.renew_until
    reason = HELD_TOO_LONG_REASON if too_long else "its lease ended before a beat was answered"
    report_lost(state, hold, LeaseEvent.DEADLINE_PASSED, reason)


def deepen(state: ClientState, hold: Hold) -> None:
    """Add one level for a nested acquire. Raises LockLostError if the lease has ended."""
    raise_if_lost(state, hold)
    _change_depth(state, hold, 1)


def undeepen(state: ClientState, hold: Hold) -> None:
    """Take away one level for a nested release.

    Raises LockLostError if the lease has ended, so that a loss is reported at once and not only at
    the last release. The level is taken away in this case too.
    """
    try:
        raise_if_lost(state, hold)
    except LockLostError:
        hold.depth -= 1
        raise
    _change_depth(state, hold, -1)


def set_depth(state: ClientState, hold: Hold, depth: int) -> None:
    """Return to an earlier depth at once, as ``Condition.wait`` does."""
    if depth > 1:
        _change_depth(state, hold, depth - 1)


def _change_depth(state: ClientState, hold: Hold, change: int) -> None:
    """Change the depth here, and write it down on the server.

    The lease is ours by the local clock, so a request without an answer does not decide: the next
    beat carries the depth. If a signal handler raises, the depth has changed or it has not, and the
    next beat tells the server.
    """
    before = hold.depth
    try:
        hold.depth = before + change
        hold.operation += 1
        if hold.state is not LeaseState.UNKNOWN:
            _tell(state, hold, state.request_seconds(hold.lease_seconds))
    except BackendUnavailableError as error:
        beat_failed(state, hold)
        state.outage.began(error)
        state.heartbeat.add(hold, 0.0)
    except BaseException as error:
        # A nested acquire that raised did not happen. A nested release did.
        hold.depth = before + min(change, 0)
        hold.operation += 1
        if not isinstance(error, LockLostError):
            state.heartbeat.add(hold, 0.0)
        raise


def renew(state: ClientState, hold: Hold, lease_seconds: float) -> None:
    """Extend the lease now, and give it this length from now on.

    Raises LockLostError, and BackendError if the server refuses or does not answer.
    """
    raise_if_lost(state, hold)
    timeout_seconds = state.request_seconds(min(hold.lease_seconds, lease_seconds))
    try:
        hold.change_lease(lease_seconds, now_seconds())
        _tell(state, hold, timeout_seconds, manual=True)
    except LockLostError:
        raise
    except BaseException as error:
        state.heartbeat.add(hold, 0.0)
        if isinstance(error, BackendError):
            error.lock, error.token, error.owner = (
                hold.bound.name,
                hold.fencing_token,
                hold.claim_id,
            )
        raise
    state.heartbeat.add(hold, lease_seconds / 3)


def _tell(state: ClientState, hold: Hold, timeout_seconds: float, *, manual: bool = False) -> None:
    """Send the depth and the lease of a hold, and learn whether it stands.

    A manual renewal asks as often as there is time. Other operations ask twice, because the next
    beat tells the server. Raises LockLostError, BackendError.
    """
    operation, failures, give_up_at = hold.operation, 0, now_seconds() + timeout_seconds
    while True:
        (answer,) = state.backend.renew([hold], timeout_seconds, exact=manual)
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
        beat_answered(state, hold, answer, operation)
    elif isinstance(answer, Exception):
        try:
            raise answer
        finally:
            # An error in a variable of a frame that it has passed keeps all frames alive.
            del answer
    else:
        report_lost(state, hold, LeaseEvent.NOT_OURS, NOT_OURS_REASON)
        raise lost_error(hold)
