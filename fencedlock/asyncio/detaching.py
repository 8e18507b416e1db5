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


async def detach(state: ClientState, hold: Hold, lease_seconds: float) -> str:
    """End the hold here, but not on the server. Return its secret."""
    doing: asyncio.Future[str] = session_of(state).in_thread(
        detaching.detach, state, hold, lease_seconds
    )
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        forget(state, hold, LeaseEvent.RELEASED)
        hold.is_detaching = True  # so that the end of a statement leaves it alone

        def give_up(done: asyncio.Future[str]) -> None:
            secret = "" if done.cancelled() or done.exception() else done.result()
            digest = detaching.digest_of(secret)
            detaching.give_up_detached(state, hold, digest, lease_seconds)

        doing.add_done_callback(give_up)
        raise


async def attach(settings: HandleSettings, owner: Owner, secret: str) -> None:
    """Go on, as this owner, with the hold that was detached with this secret."""
    # Twin of fencedlock.runtime.detaching.attach.
    began_at, failures = now_seconds(), 0
    while True:
        session = session_of(settings.state)
        claim = detaching.claim_to_attach(settings, session.client_id, owner, secret)
        claim.loop = session.loop_reference
        answer = await session.in_thread(detaching.ask_to_attach, settings, claim, secret, began_at)
        if isinstance(answer, tuple):
            if detaching.enter_attached(settings, owner, claim, secret, answer):
                return
        else:
            failures += 1
            await asyncio.sleep(pause_seconds(failures))
