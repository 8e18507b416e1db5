"""How a hold leaves its owner, and how another owner, perhaps on another host, goes on with it.

The owner that detaches its hold gets a secret, of which the server knows only the digest. The lease
runs out on the server unless somebody attaches the hold in time.
"""

from __future__ import annotations

import hashlib
import secrets
import time

from fencedlock.clock import now_seconds
from fencedlock.core.answers import RELEASED, Grant
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.lease import NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.core.pauses import pause_seconds
from fencedlock.errors import (
    BackendError,
    BackendUnavailableError,
    NotOwnedError,
)
from fencedlock.runtime.acquiring import enter, leave
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.holding import lost_error, raise_if_lost, report_lost
from fencedlock.runtime.owners import Owner, current_owner, new_claim_id
from fencedlock.runtime.process import CopiedProcessError, become_own
from fencedlock.runtime.releasing import forget
from fencedlock.runtime.resources import HandleSettings
from fencedlock.runtime.waiting import about, raise_if_client_closed

DETACH_ATTEMPTS = 2


def detach(state: ClientState, hold: Hold, lease_seconds: float) -> str:
    """End the hold here, but not on the server, where it lasts for this time. Return its secret.

    If the server refuses, or if nothing was sent, the hold stays. After any other exception it has
    ended, and the background releases the lock, because nobody knows the secret.
    """
    raise_if_lost(state, hold)
    secret = secrets.token_urlsafe(32)
    digest = digest_of(secret)
    hold.is_detaching = True
    try:
        seconds = state.request_seconds(min(hold.lease_seconds, lease_seconds))
        answer = hold.bound.detach(hold, digest, lease_seconds, seconds, DETACH_ATTEMPTS)
        if answer is not RELEASED:
            hold.is_detaching = False
            report_lost(state, hold, LeaseEvent.NOT_OURS, NOT_OURS_REASON)
            raise lost_error(hold)
        if hold.state is LeaseState.LOST:  # its deadline has passed meanwhile, which was told
            raise lost_error(hold)
        forget(state, hold, LeaseEvent.RELEASED)
    except BaseException as error:
        if _has_done_nothing(error) or not hold.is_detaching:
            hold.is_detaching = False
        else:
            give_up_detached(state, hold, digest, lease_seconds)
        raise
    return secret


def _has_done_nothing(error: BaseException) -> bool:
    """Return True if the server has refused what failed with this error, or never got it."""
    if isinstance(error, BackendUnavailableError):
        return not error.sent
    return isinstance(error, BackendError)


def digest_of(secret: str) -> str:
    """Return what the server knows of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def give_up_detached(state: ClientState, hold: Hold, digest: str, lease_seconds: float) -> None:
    """Have the background release a hold that was perhaps detached, and whose secret nobody has."""

    def action(timeout_seconds: float) -> None:
        if isinstance(hold.bound.attach(hold.claim, digest, timeout_seconds), tuple):
            hold.bound.release(hold, timeout_seconds)

    ends_at = now_seconds() + lease_seconds
    moot_at = state.moot_at(hold)
    forget(state, hold, LeaseEvent.RELEASED)
    state.heartbeat.undo(
        f"the release of detached lock {hold.bound.name!r}",
        action,
        lambda: max(moot_at(), ends_at),
    )


def attach(settings: HandleSettings, owner: Owner, secret: str) -> None:
    """Go on, as this owner, with the hold that was detached with this secret.

    Without an answer of the server, ask again until the ``outage_timeout`` of the client is over.
    """
    began_at, failures = now_seconds(), 0
    while True:
        claim = claim_to_attach(settings, settings.state.client_id, owner, secret)
        try:
            answer = ask_to_attach(settings, claim, secret, began_at)
        except CopiedProcessError:
            become_own()  # by a fork in C, which told nobody
            owner = owner if owner.kind == "handle" else current_owner()
            continue
        if isinstance(answer, tuple):
            if enter_attached(settings, owner, claim, secret, answer):
                return
        else:
            failures += 1
            time.sleep(pause_seconds(failures))


def claim_to_attach(settings: HandleSettings, client_id: str, owner: Owner, secret: str) -> Claim:
    """Return the claim for a detached hold.

    It has the id of an attempt before, if that had no answer, because the server may have attached
    the hold to that claim.
    """
    settings.state.raise_if_closed()
    if not isinstance(secret, str):
        raise TypeError(f"the secret of a detached lock is a str, not {type(secret).__name__}")
    claim_id = settings.attempts.setdefault(
        (owner.id, digest_of(secret)), new_claim_id(client_id, owner.id)
    )
    return Claim(
        claim_id, settings.resource.bound, owner, settings.lease_seconds, settings.fair, False
    )


def ask_to_attach(
    settings: HandleSettings, claim: Claim, secret: str, began_at: float
) -> Grant | BackendUnavailableError:
    """Ask the server once for a detached hold. Return the error if it may be asked again.

    Raises NotOwnedError if there is no such hold.
    """
    state, name = settings.state, settings.resource.name
    raise_if_client_closed(state, name)
    try:
        seconds = state.request_seconds(claim.lease_seconds)
        answer = claim.bound.attach(claim, digest_of(secret), seconds)
        if state.outage.since is not None:
            state.outage.ended()
    except BackendUnavailableError as error:
        state.outage.began(error)
        if now_seconds() >= began_at + state.outage_timeout:
            raise about(error, claim) from error.__cause__
        return error
    except BackendError as error:
        raise about(error, claim) from error.__cause__
    if isinstance(answer, tuple):
        return answer
    settings.attempts.pop((claim.owner.id, digest_of(secret)), None)
    raise NotOwnedError(
        f"no hold of lock {name!r} can be attached with this secret: it belongs to another lock, "
        "it was used before, or the lease has ended meanwhile",
        lock=name,
    )


def enter_attached(
    settings: HandleSettings, owner: Owner, claim: Claim, secret: str, grant: Grant
) -> bool:
    """Make an attached hold one of this process. False if its lease ended on the way to us."""
    try:
        entered = enter(settings, owner, claim, grant)
    except BaseException:
        leave(settings, claim)
        raise
    raise_if_client_closed(settings.state, settings.resource.name)
    if entered:
        settings.attempts.pop((owner.id, digest_of(secret)), None)
        settings.note_attached(settings.resource.holds[owner.id])
    return entered
