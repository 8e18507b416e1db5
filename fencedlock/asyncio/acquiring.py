"""How a task acquires a lock that it does not hold, and what is done when it gives up."""

from __future__ import annotations

import asyncio
from typing import Any

from fencedlock.asyncio.bell import TaskBell
from fencedlock.asyncio.session import Session, session_of
from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, Grant
from fencedlock.core.claims import Claim
from fencedlock.core.waiting import Ask, KeepPlace, Outcome, Pause, Sleep, Step, wait_for_grant
from fencedlock.errors import BackendError, BackendUnavailableError
from fencedlock.runtime.acquiring import WITHDRAW_SECONDS, enter, leave, withdraw_later
from fencedlock.runtime.client_state import LEAST_REQUEST_SECONDS
from fencedlock.runtime.deadlocks import raise_if_held_by_thread_of_loop
from fencedlock.runtime.owners import Owner, new_claim_id
from fencedlock.runtime.resources import HandleSettings, Resource
from fencedlock.runtime.waiting import (
    LISTENING_SECONDS,
    about,
    raise_if_client_closed,
    tell_who_holds,
)

_NEVER = float("inf")


async def acquire(settings: HandleSettings, owner: Owner, timeout_seconds: float) -> bool:
    """Acquire for this owner, which does not hold the lock. True if it holds it now.

    A timeout of 0 means one try. There is no ``await`` between the entering of a grant and the
    return, so a cancellation finds either no hold or a task that is in the body.
    """
    state = settings.state
    state.raise_if_closed()
    session = session_of(state)
    patient = timeout_seconds > 0
    deadline = now_seconds() + timeout_seconds if timeout_seconds != _NEVER else _NEVER
    while True:
        claim = Claim(
            new_claim_id(session.client_id, owner.id),
            settings.resource.bound,
            owner,
            settings.lease_seconds,
            settings.fair,
            patient,
        )
        claim.loop = session.loop_reference
        try:
            seconds = (
                settings.request_seconds
                if deadline == _NEVER or not patient
                else state.seconds_to_ask(claim, deadline)
            )
            # A fair claim takes its place by its first question, so that the tasks of a loop stand
            # in the order in which they asked.
            join = patient and (session.listening or settings.fair)
            answer = await _ask(session, claim, join, seconds)
            grant = (
                answer
                if type(answer) is tuple
                else await _wait(settings.resource, session, claim, answer, deadline)
            )
            if grant is not None and enter(settings, owner, claim, grant):
                if claim.bell is not None:
                    session.discard(claim)
                return True
            withdrawn = _give_up(session, claim)
            if withdrawn is not None:
                await asyncio.wait((withdrawn,), timeout=WITHDRAW_SECONDS)
        except BaseException:
            leave(settings, claim)
            _give_up(session, claim)
            raise
        if grant is None and (not claim.spent or now_seconds() >= deadline):
            return False
        # The client was closed, or the grant lapsed on its way. In the second case, ask anew.
        raise_if_client_closed(state, claim.bound.name)


async def _ask(
    session: Session, claim: Claim, join: bool, timeout_seconds: float
) -> ClaimAnswer | BackendUnavailableError:
    """Ask for the lock once. With ``join``, take a place in its queue if it is not free."""
    # Twin of fencedlock.runtime.waiting.ask.
    state, before = session.state, claim.may_exist
    try:
        if join and not session.listening:
            began_at = now_seconds()
            await session.listen(min(timeout_seconds, LISTENING_SECONDS))
            timeout_seconds = max(LEAST_REQUEST_SECONDS, began_at + timeout_seconds - now_seconds())
        # Whoever closes the client has set this before, and then looks for claims.
        state.expect(claim)
        raise_if_client_closed(state, claim.bound.name)
        claim.may_exist = True
        answer = await session.calls.acquire(claim, join, timeout_seconds)
        if state.outage.since is not None:
            state.outage.ended()
        return answer
    except BackendUnavailableError as error:
        if not error.sent:
            claim.may_exist = before
        state.outage.began(error)
        return about(error, claim)
    except BackendError as error:
        raise about(error, claim) from error.__cause__


async def _wait(
    resource: Resource, session: Session, claim: Claim, outcome: Outcome, deadline: float
) -> Grant | None:
    """Wait for a grant after this outcome of the first question. None if there is none in time."""
    state = session.state
    if claim.patient and resource.holds:
        raise_if_held_by_thread_of_loop(resource)
    claim.bell = bell = TaskBell(session)
    state.expect(claim)
    steps = wait_for_grant(
        claim,
        outcome,
        deadline,
        state.outage_timeout,
        now_seconds,
        join=claim.patient and session.listening,
    )
    answer: Outcome | None = None
    while True:
        try:
            with state.mutex:
                step = steps.send(answer)
        except StopIteration as stop:
            grant: Grant | None = stop.value
            return grant
        answer = await _take(session, claim, bell, step)
        # A grant stays, so a task that was woken by it needs no mutex to see it.
        if claim.grant is not None and answer is None:
            return claim.grant


async def _take(session: Session, claim: Claim, bell: TaskBell, step: Step) -> Outcome | None:
    state = session.state
    raise_if_client_closed(state, claim.bound.name)
    if isinstance(step, (Sleep, Pause)):
        await bell.wait(step.until - now_seconds())
        raise_if_client_closed(state, claim.bound.name)
    elif isinstance(step, Ask):
        outcome = await _ask(
            session, claim, step.join, state.seconds_to_ask(claim, step.give_up_at)
        )
        if not isinstance(outcome, tuple):
            # Closing the client withdraws its claims.
            raise_if_client_closed(state, claim.bound.name)
        return outcome
    elif isinstance(step, KeepPlace):
        session.keep(claim)
    else:
        session.in_thread(tell_who_holds, state, claim).add_done_callback(_look_at)
    return None


def _look_at(done: asyncio.Future[Any]) -> None:
    """Look at the error of what nobody awaits, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()


def _give_up(session: Session, claim: Claim) -> asyncio.Future[None] | None:
    """Remove a claim that nobody waits for any more from the server, without waiting for that.

    Return a future that tells when the server has answered. None if it is not asked.
    """
    state = session.state
    with state.mutex:
        claim.closed = True
        state.claims.pop(claim.id, None)
    session.discard(claim)
    if not claim.may_exist:
        return None
    if session.closed or session.loop.is_closed():
        withdraw_later(state, claim)
        return None
    ended = session.loop.create_future()

    def on_end(done: bool) -> None:
        if not done:
            withdraw_later(state, claim)
        session.finish(ended)

    seconds = min(WITHDRAW_SECONDS, state.request_seconds(claim.lease_seconds))
    session.calls.withdraw(claim, seconds, on_end)
    return ended
