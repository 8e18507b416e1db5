"""How a thread acquires a lock that it does not hold, and what is done when it gives up."""

from __future__ import annotations

from functools import partial

from fencedlock.clock import now_seconds
from fencedlock.core.answers import Grant
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.lease import LeaseEvent
from fencedlock.core.waiting import Outcome
from fencedlock.errors import BackendUnavailableError, FencedLockError
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.cooperation import raise_if_patched_too_late
from fencedlock.runtime.deadlocks import raise_if_deadlocked
from fencedlock.runtime.owners import Owner, current_owner, new_claim_id
from fencedlock.runtime.process import CopiedProcessError, become_own
from fencedlock.runtime.releasing import forget
from fencedlock.runtime.resources import HandleSettings
from fencedlock.runtime.waiting import ThreadWait, ask, raise_if_ended

WITHDRAW_SECONDS = 0.25
"""How long a caller that gives up waits for the withdrawal. It goes on in the background then."""

SOON_SECONDS = 0.05
"""The time after which the first lease of a grant by hand-off is extended, because it is short.

A hold that ends earlier saves this request.
"""

_NEVER = float("inf")


def acquire(
    settings: HandleSettings, owner: Owner, timeout_seconds: float, cancel: Cancellation | None
) -> bool:
    """Acquire for the calling thread, whose owner does not hold the lock. True if it holds it now.

    A timeout of 0 means one try.
    """
    state = settings.state
    raise_if_patched_too_late()
    if state.at_exit:
        raise_if_ended(state, settings.resource.name, None)
    elif state.closed:
        state.raise_if_closed()
    patient = timeout_seconds > 0
    deadline = now_seconds() + timeout_seconds if timeout_seconds != _NEVER else _NEVER
    if cancel is not None:
        cancel.raise_if_cancelled(settings.resource.name)
    while True:
        claim = Claim(
            new_claim_id(state.client_id, owner.id),
            settings.resource.bound,
            owner,
            settings.lease_seconds,
            settings.fair,
            patient,
        )
        try:
            seconds = (
                settings.request_seconds
                if deadline == _NEVER or not patient
                else state.seconds_to_ask(claim, deadline)
            )
            answer = ask(state, claim, patient and state.listening, seconds)
            grant = (
                answer
                if type(answer) is tuple
                else _wait(settings, claim, answer, deadline, cancel)
            )
            if grant is not None and enter(settings, owner, claim, grant):
                return True
            give_up(state, claim)
        except CopiedProcessError:
            become_own()  # by a fork in C, which told nobody
            owner = owner if owner.kind == "handle" else current_owner()
            continue
        except BaseException as error:
            leave(settings, claim)
            give_up(state, claim, reachable=not isinstance(error, BackendUnavailableError))
            raise
        if grant is None and (not claim.spent or now_seconds() >= deadline):
            return False
        # The client was closed, or the grant lapsed on its way. In the second case, ask anew.
        raise_if_ended(state, settings.resource.name, cancel)


def _wait(
    settings: HandleSettings,
    claim: Claim,
    outcome: Outcome,
    deadline: float,
    cancel: Cancellation | None,
) -> Grant | None:
    """Wait for a grant after this outcome of the first question. None if there is none in time."""
    if claim.patient and settings.resource.holds:
        raise_if_deadlocked(settings.resource, claim.owner)
    return ThreadWait(settings.state, claim, deadline, cancel).for_grant(outcome)


def enter(settings: HandleSettings, owner: Owner, claim: Claim, grant: Grant) -> bool:
    """Make the grant a hold. False if it lapsed on its way to us, and must not be used."""
    state = settings.state
    token, deadline, abandoned, brief = grant
    now = now_seconds()
    beat_after = claim.lease_seconds / 3
    if brief:
        state.backend.saw(claim.bound.name, token, now)
        beat_after = min(SOON_SECONDS, (deadline - now) / 3)
    if deadline <= now:
        return False
    holds = settings.resource.holds
    hold = Hold(claim, token, deadline, abandoned, settings.handle, holds)
    if settings.max_hold_seconds is not None:
        hold.limit(settings.max_hold_seconds, now, beat_after if brief else 0.0)
        beat_after = min(beat_after, hold.next_beat_seconds(now))
    # It is a claim or a hold, but never both. If it were both, whoever closes the client would
    # withdraw the claim while the hold is still good.
    if state.claims:
        state.claims.pop(claim.id, None)
    holds[owner.id] = hold
    state.heartbeat.begin(hold, beat_after, now + beat_after)
    # Whoever closes the client sets this first, and looks for holds then. So one of us sees the
    # other.
    if state.closed:
        forget(state, hold, LeaseEvent.RELEASED)
        return False
    if claim.bell is not None:  # it has waited, so the heartbeat may know it
        state.heartbeat.discard(claim)
    settings.latest = hold
    return True


def leave(settings: HandleSettings, claim: Claim) -> None:
    """Take back what enter did, if Ctrl-C came in its middle."""
    for hold in list(settings.resource.holds.values()):
        if hold.claim_id == claim.id:
            forget(settings.state, hold, LeaseEvent.RELEASED)


def give_up(state: ClientState, claim: Claim, *, reachable: bool = True) -> bool:
    """Remove a claim that nobody waits for any more from the server. False if that had no answer.

    Without ``reachable``, or if the server does not answer at once, the background does it.
    """
    seconds = state.request_seconds(claim.lease_seconds)
    try:
        with state.mutex:
            claim.closed = True
            state.claims.pop(claim.id, None)
        state.heartbeat.discard(claim)
        if not claim.may_exist:
            return reachable
        if reachable:
            claim.bound.withdraw(claim, min(WITHDRAW_SECONDS, seconds))
            return True
    except FencedLockError:
        pass
    except BaseException:
        claim.closed = True
        withdraw_later(state, claim)
        raise
    withdraw_later(state, claim)
    return False


def withdraw_later(state: ClientState, claim: Claim) -> None:
    """Have the background remove the claim from the server."""
    action = partial(claim.bound.withdraw, claim)
    state.heartbeat.undo(
        f"the withdrawal of a claim on lock {claim.bound.name!r}", action, state.moot_at(claim)
    )
