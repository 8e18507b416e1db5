"""How a task changes and ends its holds."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from functools import partial
from typing import Any, NoReturn

from fencedlock.asyncio.session import Session
from fencedlock.clock import now_seconds
from fencedlock.core.answers import ReleaseAnswer, Renewed
from fencedlock.core.claims import Hold
from fencedlock.core.lease import NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.errors import BackendUnavailableError, LockLostError
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.holding import (
    beat_answered,
    beat_failed,
    lost_error,
    raise_if_lost,
    report_lost,
    tell_safe,
)
from fencedlock.runtime.releasing import error_of_answer, release_in_background, release_lost

_HELD, _LOST, _RELEASED = LeaseState.HELD, LeaseState.LOST, LeaseState.RELEASED


class Release:
    """A release, which was sent when it was asked for. Awaiting it tells whether the hold stood."""

    __slots__ = ("_done", "_error", "_session", "_waiters")

    def __init__(self, session: Session | None) -> None:
        self._session = session
        self._done = session is None
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @classmethod
    def ended(cls, error: BaseException | None) -> Release:
        """Return a release that has ended already, with this error."""
        release = cls(None)
        release._error = error
        return release

    def end(self, error: BaseException | None) -> None:
        """Record that the release has ended, and wake whoever awaits it. Called in any thread."""
        self._error, self._done = error, True
        for waiter in self._waiters:
            assert self._session is not None
            self._session.finish(waiter)

    def __await__(self) -> Generator[Any, None, None]:
        if not self._done:
            assert self._session is not None
            waiter = self._session.loop.create_future()
            self._waiters.append(waiter)
            if not self._done:  # another thread may have ended it meanwhile
                yield from waiter
        error = self._error
        try:
            if error is not None:
                raise error
        finally:
            # An error in a variable of a frame that it has passed keeps all frames alive.
            del error

    def __bool__(self) -> NoReturn:
        raise TypeError("a release has no value: await it")


def release(
    state: ClientState, session: Session | None, hold: Hold, keep_seconds: float
) -> Release:
    """End the hold, by its last release. Without a session, the background does it.

    With ``keep_seconds``, nobody gets the lock before that time is over.
    """
    # Twin of fencedlock.runtime.releasing.release.
    keep_until = now_seconds() + keep_seconds if keep_seconds else 0.0
    if hold.state is not _HELD or now_seconds() >= hold.deadline:
        lost = release_lost(state, hold)
        if lost is not None:
            return Release.ended(lost)
    if hold.siblings.pop(hold.owner.id, None) is not hold:
        return Release.ended(None)  # whoever closes the client has it, and releases it
    if hold.state is not _LOST:
        hold.state = _RELEASED
    if session is None:
        release_in_background(state, hold, keep_until, None)
        return Release.ended(None)
    ending = Release(session)
    try:
        session.calls.release(
            hold,
            keep_seconds,
            state.request_seconds(hold.lease_seconds),
            partial(_answered, state, hold, keep_until, ending),
        )
    except BaseException as error:
        release_in_background(state, hold, keep_until, error)
        raise
    return ending


def _answered(
    state: ClientState,
    hold: Hold,
    keep_until: float,
    ending: Release,
    answer: ReleaseAnswer | BaseException,
) -> None:
    if isinstance(answer, BaseException):
        release_in_background(state, hold, keep_until, answer)
        ending.end(None)
        return
    # Until now, whoever closes the client has waited for this hold.
    state.heartbeat.discard(hold)
    error = error_of_answer(state, hold, answer, keep_until)
    if error is None and hold.told_at_risk:
        tell_safe(state, hold)
    ending.end(error)


async def deepen(session: Session, hold: Hold) -> None:
    """Add one level for a nested acquire. Raises LockLostError if the lease has ended."""
    state = session.state
    raise_if_lost(state, hold)
    hold.depth += 1
    hold.operation += 1
    try:
        await _tell(session, hold)
    except BaseException as error:
        # A nested acquire that raised did not happen.
        hold.depth -= 1
        hold.operation += 1
        if not isinstance(error, LockLostError):
            state.heartbeat.add(hold, 0.0)
        raise


def undeepen(session: Session | None, state: ClientState, hold: Hold) -> Release:
    """Take away one level for a nested release, at once."""
    hold.depth -= 1
    try:
        raise_if_lost(state, hold)
    except LockLostError as error:
        return Release.ended(error)
    hold.operation += 1
    if session is None:
        state.heartbeat.add(hold, 0.0)
        return Release.ended(None)
    ending = Release(session)
    task = session.start(_tell(session, hold))
    task.add_done_callback(lambda done: ending.end(None if done.cancelled() else done.exception()))
    return ending


async def _tell(session: Session, hold: Hold) -> None:
    """Write the depth of a hold down on the server, and learn whether the hold stands.

    The lease is ours by the local clock, so a request without an answer does not decide: the next
    beat carries the depth. Raises LockLostError, BackendError.
    """
    state, operation = session.state, hold.operation
    if hold.state is LeaseState.UNKNOWN:
        return
    try:
        answer = await session.calls.renew(hold, state.request_seconds(hold.lease_seconds))
    except BackendUnavailableError as error:
        beat_failed(state, hold)
        state.outage.began(error)
        state.heartbeat.add(hold, 0.0)
        return
    if isinstance(answer, Renewed):
        beat_answered(state, hold, answer, operation)
    elif hold.state is not _RELEASED:  # otherwise the last release has come before
        report_lost(state, hold, LeaseEvent.NOT_OURS, NOT_OURS_REASON)
        raise lost_error(hold)
