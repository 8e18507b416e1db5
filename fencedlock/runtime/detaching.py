"""How a hold leaves its owner, and how another owner, perhaps on another host, goes on with it.

The owner that detaches its hold gets a secret, of which the server knows only the digest. The lease
runs out on the server unless somebody attaches the hold in time.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import suppress
from typing import Any, Self

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

MOST_ATTEMPTS = 1000
"""The number of attempts to attach without an answer that a client remembers."""


def detach(state: ClientState, hold: Hold, lease_seconds: float) -> str:
    """End the hold here, but not on the server, where it lasts for this time. Return its secret.

    If the server refuses, or if nothing was sent, the hold stays. After any other exception it has
    ended, and the background releases the lock, because nobody knows the secret.
    """
    raise_if_lost(state, hold)
    secret = secrets.token_urlsafe(32)
    digest = digest_of(secret)
    with hold.changing:
        if hold.is_detaching:
            raise NotOwnedError(
                f"lock {hold.bound.name!r} is being detached just now", lock=hold.bound.name
            )
        hold.is_detaching = True
    try:
        if not _is_detached(state, hold, digest, lease_seconds):
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


def _is_detached(state: ClientState, hold: Hold, digest: str, lease_seconds: float) -> bool:
    """Ask the server twice. Return False if the hold is not ours any more."""
    seconds = state.request_seconds(min(hold.lease_seconds, lease_seconds))
    try:
        return hold.bound.detach(hold, digest, lease_seconds, seconds) is RELEASED
    except BackendUnavailableError as error:
        unanswered = error
    try:
        return hold.bound.detach(hold, digest, lease_seconds, seconds) is RELEASED
    except BackendUnavailableError as error:
        error.sent = error.sent or unanswered.sent
        raise
    except BackendError:
        if unanswered.sent:  # the first copy may have been executed, whatever is said to the second
            raise unanswered from None
        raise


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
    with Attempt(settings, secret) as attempt:
        while True:
            try:
                answer = attempt.ask(owner, began_at)
            except CopiedProcessError:
                become_own()  # by a fork in C, which told nobody
                owner = owner if owner.kind == "handle" else current_owner()
                continue
            if isinstance(answer, tuple):
                if attempt.enter(owner, answer):
                    return
            else:
                failures += 1
                time.sleep(pause_seconds(failures))


class Attempt:
    """An attempt to attach a detached hold. There is one at a time for each secret.

    If it has no answer, the server may have attached the hold to its claim. So the next attempt of
    this client with the same secret has the same claim.
    """

    def __init__(self, settings: HandleSettings, secret: str) -> None:
        settings.state.raise_if_closed()
        if not isinstance(secret, str):
            raise TypeError(f"the secret of a detached lock is a str, not {type(secret).__name__}")
        self._settings = settings
        self._state = settings.state
        self._digest = digest_of(secret)
        self._claim: Claim | None = None

    def __enter__(self) -> Self:
        with self._state.mutex:
            if self._digest in self._state.attaching:
                raise self._no_hold("somebody in this process is attaching it just now")
            self._state.attaching.add(self._digest)
        return self

    def __exit__(self, *_error: object) -> None:
        self._state.attaching.discard(self._digest)

    def ask(
        self, owner: Owner, began_at: float, loop: Any = None
    ) -> Grant | BackendUnavailableError:
        """Ask the server once. Return the error if it may be asked again.

        Raises NotOwnedError if there is no such hold.
        """
        state, settings = self._state, self._settings
        raise_if_client_closed(state, settings.resource.name)
        claim = self._claim = self._claim_for(owner)
        claim.loop = loop
        try:
            seconds = state.request_seconds(claim.lease_seconds)
            answer = claim.bound.attach(claim, self._digest, seconds)
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
        state.attempts.pop(self._digest, None)
        raise self._no_hold(
            "it belongs to another lock, it was used before, or the lease has ended meanwhile"
        )

    def _claim_for(self, owner: Owner) -> Claim:
        settings, attempts = self._settings, self._state.attempts
        if self._digest not in attempts:
            attempts[self._digest] = new_claim_id(self._state.client_id, owner.id)
            while len(attempts) > MOST_ATTEMPTS:
                attempts.pop(next(iter(attempts)))
        return Claim(
            attempts[self._digest],
            settings.resource.bound,
            owner,
            settings.lease_seconds,
            settings.fair,
            False,
        )

    def enter(self, owner: Owner, grant: Grant) -> bool:
        """Make an attached hold one of this process. False if its lease ended on the way to us."""
        settings, state, claim = self._settings, self._state, self._claim
        assert claim is not None
        try:
            entered = enter(settings, owner, claim, grant)
            if state.closed:
                self._give_back(claim, grant)
                raise_if_client_closed(state, settings.resource.name)
            if entered:
                state.attempts.pop(self._digest, None)
        except BaseException:
            leave(settings, claim)
            raise
        return entered

    def _give_back(self, claim: Claim, grant: Grant) -> None:
        """Detach the hold again, so that another client can attach it."""
        hold = Hold(claim, grant[0], grant[1], grant[2], self._settings.handle, {})
        with suppress(BackendError):
            seconds = self._state.request_seconds(claim.lease_seconds)
            claim.bound.detach(hold, self._digest, claim.lease_seconds, seconds)

    def _no_hold(self, why: str) -> NotOwnedError:
        name = self._settings.resource.name
        return NotOwnedError(
            f"no hold of lock {name!r} can be attached with this secret: {why}", lock=name
        )
