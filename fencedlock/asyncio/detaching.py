"""How a task lets go of a hold that somebody else goes on with, and how it attaches such a hold."""

from __future__ import annotations

import asyncio

from fencedlock.asyncio.session import session_of
from fencedlock.clock import now_seconds
from fencedlock.core.claims import Hold
from fencedlock.core.lease import LeaseEvent
from fencedlock.core.pauses import pause_seconds
from fencedlock.runtime import detaching
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.owners import Owner
from fencedlock.runtime.releasing import forget
from fencedlock.runtime.resources import HandleSettings


class _Detaching:
    """A detachment by a thread, whose task may be cancelled meanwhile. Nobody has its secret then.

    The thread gives the hold up, because the loop may end before the thread does.
    """

    def __init__(self, state: ClientState, hold: Hold, lease_seconds: float) -> None:
        self._state = state
        self._hold = hold
        self._lease_seconds = lease_seconds
        self._secret = ""
        self._has_ended = False
        self._is_cancelled = False

    def run(self) -> str:
        """Detach the hold, in a thread."""
        try:
            self._secret = detaching.detach(self._state, self._hold, self._lease_seconds)
            return self._secret
        finally:
            with self._state.mutex:
                self._has_ended = True
                give_up = self._is_cancelled
            if give_up:
                self._give_up()

    def cancel(self) -> None:
        """End the hold here at once, and have it released."""
        forget(self._state, self._hold, LeaseEvent.RELEASED)
        self._hold.is_detaching = True  # so that the end of a statement leaves it alone
        with self._state.mutex:
            self._is_cancelled = True
            give_up = self._has_ended
        if give_up:
            self._give_up()

    def _give_up(self) -> None:
        digest = detaching.digest_of(self._secret)
        detaching.give_up_detached(self._state, self._hold, digest, self._lease_seconds)


async def detach(state: ClientState, hold: Hold, lease_seconds: float) -> str:
    """End the hold here, but not on the server. Return its secret."""
    detachment = _Detaching(state, hold, lease_seconds)
    try:
        secret: str = await asyncio.shield(session_of(state).in_thread(detachment.run))
    except asyncio.CancelledError:
        detachment.cancel()
        raise
    return secret


async def attach(settings: HandleSettings, owner: Owner, secret: str) -> None:
    """Go on, as this owner, with the hold that was detached with this secret."""
    # Twin of fencedlock.runtime.detaching.attach.
    began_at, failures = now_seconds(), 0
    with detaching.Attempt(settings, secret) as attempt:
        while True:
            session = session_of(settings.state)
            answer = await session.in_thread(attempt.ask, owner, began_at, session.loop_reference)
            if isinstance(answer, tuple):
                if attempt.enter(owner, answer):
                    return
            else:
                failures += 1
                await asyncio.sleep(pause_seconds(failures))
