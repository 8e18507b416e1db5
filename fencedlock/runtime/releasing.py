"""How a hold ends: by its last release, with its last handle, or with its client."""

from __future__ import annotations

from fencedlock.clock import Deadline, now_seconds
from fencedlock.core.answers import RELEASED, NotOurs, ReleaseAnswer
from fencedlock.core.claims import Hold
from fencedlock.core.lease import NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.errors import FencedLockError, LockLostError
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.holding import lost_error, raise_if_lost, report_lost, tell_safe

_HELD, _LOST, _RELEASED = LeaseState.HELD, LeaseState.LOST, LeaseState.RELEASED


def release(state: ClientState, hold: Hold, keep_seconds: float = 0.0) -> None:
    """End the hold, by its last release. Raises LockLostError if the lease had ended before.

    With ``keep_seconds``, nobody gets the lock before that time is over.
    """
    keep_until = now_seconds() + keep_seconds if keep_seconds else 0.0
    if hold.state is not _HELD or now_seconds() >= hold.deadline:
        _raise(release_lost(state, hold))
    try:
        claim = hold.claim
        if hold.siblings.pop(claim.owner.id, None) is not hold:
            return  # whoever closes the client has it, and releases it
        # Twin of _unwind, spelt out because it is on the way of each release.
        if hold.state is not _LOST:
            hold.state = _RELEASED
        request_seconds = state.request_seconds(hold.lease_seconds)
        if keep_seconds:
            answer = claim.bound.keep(hold, keep_seconds, request_seconds, 2)
        else:
            answer = claim.bound.release(hold, request_seconds, 2)
        # After the release, because somebody else waits for that.
        state.heartbeat.discard(hold)
    except BaseException as error:
        release_in_background(state, hold, keep_until, error)
        if not isinstance(error, FencedLockError):
            raise
        return
    if answer is not RELEASED:
        _raise(error_of_answer(state, hold, answer, keep_until))
    if hold.told_at_risk:
        tell_safe(state, hold)


def _raise(error: LockLostError | None) -> None:
    try:
        if error is not None:
            raise error
    finally:
        # An error in a variable of a frame that it has passed keeps all frames alive.
        del error


def release_in_background(
    state: ClientState, hold: Hold, keep_until: float, error: BaseException | None
) -> None:
    """Have the background release a hold, after a release that ended with this error."""
    forget(state, hold, LeaseEvent.RELEASED)
    _release_later(state, hold, keep_until)
    if isinstance(error, FencedLockError):
        state.observer.release_unanswered(hold, error)


def error_of_answer(
    state: ClientState, hold: Hold, answer: ReleaseAnswer, keep_until: float
) -> LockLostError | None:
    """Return the error of a release that the server has answered so. None if the hold is over.

    "Not ours" to the first copy of the request means that the hold was taken from us. To a later
    copy it may mean that the first one ended the hold, or that the lease ran out while we asked,
    which harms nobody because the body was done.
    """
    if answer is RELEASED:
        return None
    assert isinstance(answer, NotOurs)
    is_over = answer.ended >= hold.token or (now_seconds() >= hold.deadline and not keep_until)
    if answer.replayed and is_over:
        return None
    report_lost(state, hold, LeaseEvent.RELEASE_REFUSED, NOT_OURS_REASON)
    return lost_error(hold)


def release_lost(state: ClientState, hold: Hold) -> LockLostError | None:
    """Forget a hold that is to be released, if its lease has ended. Return the error for that.

    Raises NotOwnedError if the hold was released. No I/O.
    """
    try:
        raise_if_lost(state, hold)
    except LockLostError as error:
        forget(state, hold, LeaseEvent.RELEASED)
        # An old packet may still be under way, or the server may not know how short the lease was.
        if hold.claim.ticket.unanswered or now_seconds() < hold.lasts_until:
            _release_later(state, hold)
        return error
    return None


def _release_later(state: ClientState, hold: Hold, keep_until: float = 0.0) -> None:
    def action(timeout_seconds: float) -> None:
        left = keep_until - now_seconds()
        if left > 0:
            hold.bound.keep(hold, left, timeout_seconds)
        else:
            hold.bound.release(hold, timeout_seconds)

    moot_at = state.moot_at(hold)
    state.heartbeat.undo(
        f"the release of lock {hold.bound.name!r}",
        action,
        lambda: max(moot_at(), hold.lasts_until),
    )


def forget(state: ClientState, hold: Hold, event: LeaseEvent) -> None:
    """Record that the owner is done with the hold, however it ended."""
    _unwind(hold, event)
    state.heartbeat.discard(hold)
    if hold.told_at_risk:
        tell_safe(state, hold)


def _unwind(hold: Hold, event: LeaseEvent) -> None:
    """Record that the owner does not hold the lock any more."""
    owner_id = hold.owner.id
    if hold.siblings.get(owner_id) is hold:
        # Another thread, which closes the client, may do the same.
        hold.siblings.pop(owner_id, None)
    hold.happened(event)


def release_dropped(state: ClientState, hold: Hold) -> None:
    """Take away one level for a ``with`` statement whose end was interrupted before it began.

    The heartbeat calls this.
    """
    if not hold.wants_beats() or hold.siblings.get(hold.owner.id) is not hold:
        return
    if hold.depth > 1:
        hold.depth -= 1
        hold.operation += 1
        state.heartbeat.add(hold, 0.0)
    elif hold.siblings.pop(hold.owner.id, None) is hold:
        forget(state, hold, LeaseEvent.RELEASED)
        _release_later(state, hold)


def release_collected(state: ClientState, hold: Hold) -> None:
    """Release a hold whose last handle was collected. The heartbeat calls this."""
    if hold.wants_beats():
        state.observer.collected(hold)
        forget(state, hold, LeaseEvent.RELEASED)
        _release_later(state, hold)


def release_quickly(state: ClientState, hold: Hold, deadline: Deadline, *, reachable: bool) -> bool:
    """Release a hold because the client closes. False if the server does not answer.

    After that, the release of other holds need not wait for the server.
    """
    if hold.siblings.pop(hold.owner.id, None) is None:
        return reachable  # its owner is releasing it just now
    forget(state, hold, LeaseEvent.RELEASED)
    if reachable and now_seconds() < hold.deadline and deadline.left() > 0:
        try:
            hold.bound.release(
                hold, min(state.request_seconds(hold.lease_seconds), deadline.left())
            )
        except FencedLockError as error:
            state.observer.left_to_its_lease(hold, error)
            return False
    return reachable
