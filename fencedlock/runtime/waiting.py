"""How a thread waits until its claim is granted, cancelled or timed out."""

from __future__ import annotations

import threading
from typing import TypeVar

from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, Grant, Waiting
from fencedlock.core.claims import Claim
from fencedlock.core.info import LockInfo
from fencedlock.core.waiting import (
    Ask,
    KeepPlace,
    Outcome,
    Pause,
    Sleep,
    Step,
    wait_for_grant,
)
from fencedlock.errors import (
    AcquireCancelledError,
    BackendError,
    BackendUnavailableError,
    FencedLockError,
)
from fencedlock.runtime.bell import Bell
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.client_state import LEAST_REQUEST_SECONDS, ClientState
from fencedlock.runtime.deadlocks import SUSPICION_SECONDS, raise_if_held_by_another_client
from fencedlock.runtime.process import CopiedProcessError, own

_Error = TypeVar("_Error", bound=BackendError)

_FOR_EVER = float("inf")

LISTENING_SECONDS = 1.0
"""How long the first waiter of a client waits for the channel by which grants arrive.

It goes on without the channel then, and asks the server more often.
"""

LONGEST_SLEEP_SECONDS = 5.0
"""The time after which a waiting thread wakes and looks whether it runs in a copy of its process.

A signal handler may have made the copy, and nobody wakes the copy's thread.
"""


def ask(
    state: ClientState, claim: Claim, join: bool, timeout_seconds: float
) -> ClaimAnswer | BackendUnavailableError:
    """Ask for the lock once. With ``join``, take a place in its queue if it is not free."""
    before = claim.may_exist
    try:
        if join and not state.listening:
            began_at = now_seconds()
            state.listen(min(timeout_seconds, LISTENING_SECONDS))
            timeout_seconds = max(LEAST_REQUEST_SECONDS, began_at + timeout_seconds - now_seconds())
        # Whoever closes the client has set this before, and then looks for claims.
        state.expect(claim)
        if state.closed:
            raise_if_client_closed(state, claim.bound.name)
        claim.may_exist = True
        answer = claim.bound.acquire(claim, join, timeout_seconds)
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


def about(error: _Error, claim: Claim) -> _Error:
    """Return the same error after adding to it which lock and claim it is about."""
    name = claim.bound.name
    if error.lock is None:
        error.lock, error.owner = name, claim.id
        error.args = (f"lock {name!r}: {error.args[0]}", *error.args[1:])
    return error


def raise_if_ended(state: ClientState, name: str, cancel: Cancellation | None) -> None:
    """Raise AcquireCancelledError if this acquisition was cancelled, or the client was closed."""
    if cancel is not None:
        cancel.raise_if_cancelled(name)
    if state.at_exit and threading.current_thread().daemon:
        # The interpreter ends without this thread, whose error would only be a traceback.
        threading.Event().wait()
    raise_if_client_closed(state, name)


def raise_if_client_closed(state: ClientState, name: str) -> None:
    """Raise AcquireCancelledError if the client was closed during this acquisition."""
    if state.closed:
        raise AcquireCancelledError(
            f"the acquisition of {name!r} ended because its client was closed", lock=name
        )


class ThreadWait:
    """Waits in the calling thread, by the steps of :mod:`fencedlock.core.waiting`."""

    def __init__(
        self, state: ClientState, claim: Claim, deadline: float, cancel: Cancellation | None
    ) -> None:
        self._state = state
        self._claim = claim
        self._bell = claim.bell = Bell()
        state.expect(claim)
        self._deadline = deadline
        self._cancel = cancel
        # A wait without a limit is interrupted once, to look whether this thread waits for itself.
        self._longest_sleep_seconds: float = (
            SUSPICION_SECONDS if deadline == _FOR_EVER else LONGEST_SLEEP_SECONDS
        )

    def for_grant(self, outcome: Outcome) -> Grant | None:
        """Return the grant, after this outcome of the first question.

        Returns None if the lock is busy and the claim may not wait, or not any longer, or if the
        claim is spent. Raises AcquireCancelledError, and BackendUnavailableError if the server
        stays away.
        """
        if self._cancel is None:
            if type(outcome) is Waiting:
                grant = self._sleep_once(outcome)
                if grant is not None:
                    return grant
            return self._take_steps(outcome)
        self._cancel._attach(self._bell)
        try:
            return self._take_steps(outcome)
        finally:
            self._cancel._detach(self._bell)

    def _sleep_once(self, answer: Waiting) -> Grant | None:
        """Sleep after the answer "wait", and return the grant if it has come by then.

        Twin of the first sleep of :func:`wait_for_grant`, spelt out because it is on the way of
        each hand-off. If there is no grant, the steps begin with the same answer.
        """
        claim, state = self._claim, self._state
        with state.mutex:
            claim.waiting(answer)
        if claim.grant is None and not claim.must_ask:
            beat_at = claim.alive_until - 2 * claim.beat_every_seconds
            self._sleep(min(beat_at, claim.recheck_at, self._deadline))
        return claim.grant

    def _take_steps(self, outcome: Outcome) -> Grant | None:
        claim, state = self._claim, self._state
        steps = wait_for_grant(
            claim,
            outcome,
            self._deadline,
            state.outage_timeout,
            now_seconds,
            join=claim.patient and state.listening,
        )
        answer: Outcome | None = None
        while True:
            try:
                with state.mutex:
                    step = steps.send(answer)
            except StopIteration as stop:
                grant: Grant | None = stop.value
                return grant
            answer = self._take(step)
            # A grant stays, so a thread that was woken by it needs no mutex to see it.
            if claim.grant is not None and answer is None:
                return claim.grant

    def _take(self, step: Step) -> Outcome | None:
        claim, state = self._claim, self._state
        if isinstance(step, Sleep):
            self._sleep(step.until)
        elif isinstance(step, Ask):
            self._raise_if_ended()
            outcome = ask(state, claim, step.join, state.seconds_to_ask(claim, step.give_up_at))
            if not isinstance(outcome, tuple):
                self._raise_if_ended()  # closing the client withdraws its claims
            return outcome
        elif isinstance(step, KeepPlace):
            state.heartbeat.add(claim, 0.0)
        elif isinstance(step, Pause):
            self._bell.wait(step.until - now_seconds())
            self._raise_if_ended()
        else:
            self._tell_observer()
        return None

    def _sleep(self, until: float) -> None:
        claim, state = self._claim, self._state
        if self._cancel is not None or state.closed or state.at_exit:
            self._raise_if_ended()
        seconds, longest = until - now_seconds(), self._longest_sleep_seconds
        state.backend.wait(self._bell, seconds if seconds < longest else longest)  # noqa: FURB136
        if longest == SUSPICION_SECONDS and claim.grant is None:
            self._longest_sleep_seconds = LONGEST_SLEEP_SECONDS
            raise_if_held_by_another_client(state, claim)
        self._raise_if_copied()
        if self._cancel is not None or state.closed or state.at_exit:
            self._raise_if_ended()

    def _raise_if_copied(self) -> None:
        """Raise CopiedProcessError if a signal handler has forked in the middle of the wait.

        The claim belongs to the original process, and the copy makes a new claim.
        """
        if not own[0] or not self._claim.id.startswith(f"{self._state.client_id}/"):
            raise CopiedProcessError

    def _raise_if_ended(self) -> None:
        self._raise_if_copied()
        raise_if_ended(self._state, self._claim.bound.name, self._cancel)

    def _tell_observer(self) -> None:
        """Tell the log who holds the lock.

        After so long a wait, the holder often hangs, or the waiting thread holds the lock itself by
        another client.
        """
        tell_who_holds(self._state, self._claim)


def tell_who_holds(state: ClientState, claim: Claim) -> None:
    """Tell the observer who holds the lock that a claim waits for. Asks the server."""
    info: LockInfo | FencedLockError
    try:
        info = claim.bound.inspect(state.request_seconds(claim.lease_seconds))
    except FencedLockError as error:
        info = error
    state.observer.waits_long(claim, info)
