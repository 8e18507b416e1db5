"""How a thread sleeps until its claim is granted, cancelled or timed out."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from fencedlock.clock import now_seconds
from fencedlock.core.answers import Busy, ClaimAnswer, Gone, Grant, Waiting
from fencedlock.core.backend import Backend
from fencedlock.core.claims import Claim, Hold
from fencedlock.errors import (
    AcquireCancelledError,
    BackendError,
    BackendUnavailableError,
    FencedLockError,
)
from fencedlock.runtime.bell import Bell
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.outage import Outage
from fencedlock.runtime.pauses import pause_seconds
from fencedlock.runtime.process import CopiedProcessError, own

logger: logging.Logger = logging.getLogger("fencedlock")

_Error = TypeVar("_Error", bound=BackendError)

REQUEST_SHARE_OF_LEASE = 0.3
"""No request waits longer for its answer than this share of the lease it is about, so that a failed
one leaves time for another.
"""

LEAST_REQUEST_SECONDS = 0.1
"""Even the shortest timeout of a caller that waits leaves a request this long:
``acquire(timeout=1e-6)`` takes a free lock.
"""

LISTENING_SECONDS = 1.0
"""Who has to wait first waits so long for the way to open by which grants arrive; it goes on
without it then, and asks more often.
"""

LONGEST_SLEEP_SECONDS = 5.0
"""A thread that waits looks around so often: a signal handler may have made a copy of its process,
which nobody wakes.
"""

SLOW_SECONDS = 10.0
"""A wait of so long is told to the log, with the name of the holder."""


class Beats(Protocol):
    """Who keeps a claim's place while its thread sleeps."""

    def add(self, target: Hold | Claim, delay_seconds: float) -> None:
        """Beat for the target after so many seconds."""


class Table(Protocol):
    """The client, as a claim that waits sees it."""

    backend: Backend
    mutex: AbstractContextManager[bool]
    outage: Outage
    client_id: str
    outage_timeout: float
    listening: bool
    closed: bool
    at_exit: bool

    @property
    def heartbeat(self) -> Beats:
        """Keeps places in queues."""

    def listen(self, timeout_seconds: float) -> None:
        """Open the way by which grants arrive."""

    def expect(self, claim: Claim) -> None:
        """A message may come for this claim."""

    def request_seconds(self, lease_seconds: float) -> float:
        """How long a request about a lease of this length may wait for its answer."""

    def seconds_to_ask(self, claim: Claim, deadline: float) -> float:
        """How long a question of this claim may wait for its answer, whose caller gives up at ``deadline``."""


def ask(
    table: Table, claim: Claim, queue: bool, timeout_seconds: float
) -> ClaimAnswer | BackendUnavailableError:
    """Ask for the lock once; with ``queue``, for a place in its queue otherwise."""
    before = claim.may_exist
    try:
        if queue:
            if not table.listening:
                began_at = now_seconds()
                table.listen(min(timeout_seconds, LISTENING_SECONDS))
                timeout_seconds = max(
                    LEAST_REQUEST_SECONDS, began_at + timeout_seconds - now_seconds()
                )
            table.expect(claim)
        claim.may_exist = True
        answer = claim.bound.acquire(claim, queue, timeout_seconds)
        if table.outage.since is not None:
            table.outage.ended()
        return answer
    except BackendUnavailableError as error:
        if not error.sent:
            claim.may_exist = before
        table.outage.began(error)
        return _about(error, claim)
    except BackendError as error:
        raise _about(error, claim) from error.__cause__


def _about(error: _Error, claim: Claim) -> _Error:
    """The same error, which says what it happened to."""
    name = claim.bound.name
    if error.lock is None:
        error.lock, error.owner = name, claim.id
        error.args = (f"lock {name!r}: {error.args[0]}", *error.args[1:])
    return error


def raise_if_ended(table: Table, name: str, cancel: Cancellation | None) -> None:
    """Raise AcquireCancelledError if somebody cancelled the acquisition of this lock, or closed the client."""
    if cancel is not None:
        cancel.raise_if_cancelled(name)
    if table.at_exit and threading.current_thread().daemon:
        # The interpreter ends without this thread, whose error would only be a traceback.
        threading.Event().wait()
    if table.closed:
        raise AcquireCancelledError(
            f"the acquisition of {name!r} ended because its client was closed", lock=name
        )


class Wait:
    """One thread's way from what came of its first question to a grant, a time-out or an error."""

    def __init__(
        self, table: Table, claim: Claim, deadline: float, cancel: Cancellation | None
    ) -> None:
        self._table = table
        self._claim = claim
        self._bell = claim.bell = Bell()
        table.expect(claim)
        self._deadline = deadline
        self._cancel = cancel
        self._failing_since: float | None = None
        self._failures = 0
        self._slow_at: float = now_seconds() + SLOW_SECONDS

    def for_grant(self, outcome: ClaimAnswer | BackendUnavailableError) -> Grant | None:
        """The grant; None when the lock is busy and the claim may not wait, or not any longer, or when it is spent.

        Raises AcquireCancelledError, and BackendUnavailableError when the server stays away.
        """
        if self._cancel is None:
            return self._ask_until_granted(outcome)
        self._cancel._attach(self._bell)
        try:
            return self._ask_until_granted(outcome)
        finally:
            self._cancel._detach(self._bell)

    def _ask_until_granted(self, outcome: ClaimAnswer | BackendUnavailableError) -> Grant | None:
        claim, table = self._claim, self._table
        queue = claim.patient and table.listening
        while True:
            if isinstance(outcome, Waiting):
                self._failing_since = None
                if not self._sleep(outcome):
                    return claim.grant
            elif isinstance(outcome, tuple):
                claim.granted(outcome)
                return claim.grant
            elif isinstance(outcome, Busy):
                self._failing_since = None
                claim.may_exist = claim.ticket.unanswered
                if not claim.patient:
                    return None
                queue = True
            elif isinstance(outcome, Gone):
                self._raise_if_ended()  # closing the client withdraws its claims
                if claim.issued is not None:
                    claim.spent, claim.may_exist = True, claim.ticket.unanswered
                    return None
                raise BackendError(
                    "the lock server says that this claim was withdrawn, which nobody did",
                    lock=claim.bound.name,
                )
            else:
                self._pause(outcome)
            self._raise_if_ended()
            outcome = ask(table, claim, queue, table.seconds_to_ask(claim, self._give_up_at()))

    def _give_up_at(self) -> float:
        """When the caller stops waiting: at its deadline, and without one when the server has been away for too long."""
        if self._deadline != float("inf") or self._failing_since is None:
            return self._deadline
        return self._failing_since + self._table.outage_timeout

    def _sleep(self, answer: Waiting) -> bool:
        """After this answer, sleep until there is something to ask (True), or the claim is granted or out of time (False)."""
        claim, table = self._claim, self._table
        with table.mutex:
            claim.waiting(answer)
        while True:
            if self._cancel is not None or table.closed or table.at_exit:
                self._raise_if_ended()
            if claim.grant is not None:
                return False
            with table.mutex:
                now = now_seconds()
                if now >= self._deadline:
                    claim.closed = True
                    return False
                if claim.must_ask or now >= claim.recheck_at:
                    claim.must_ask = False
                    return True
                until = min(self._deadline, claim.recheck_at)
                # Most are served before their first beat falls due: so the heartbeat learns of it
                # then.
                if claim.queue is None:
                    beat_at = claim.alive_until - 2 * claim.beat_every_seconds
                    if now >= beat_at:
                        table.heartbeat.add(claim, 0.0)
                    else:
                        until = min(until, beat_at)
            if now >= self._slow_at:
                self._slow_at = float("inf")
                self._say_who_holds()
                continue
            table.backend.wait(
                self._bell, min(until - now, self._slow_at - now, LONGEST_SLEEP_SECONDS)
            )
            self._raise_if_copied()

    def _raise_if_copied(self) -> None:
        """A signal handler may have forked in the middle of the wait: the claim is the original's, and a copy claims anew."""
        if not own[0] or not self._claim.id.startswith(f"{self._table.client_id}/"):
            raise CopiedProcessError

    def _say_who_holds(self) -> None:
        """A wait that is this long is often a holder that hangs, or a lock that its own thread waits for."""
        name = self._claim.bound.name
        try:
            info = self._claim.bound.inspect(self._table.request_seconds(self._claim.lease_seconds))
        except FencedLockError as error:
            logger.warning(
                "fencedlock: waiting for lock %r for %.0f s so far, and the server does not say "
                "who holds it: %s",
                name,
                SLOW_SECONDS,
                error,
            )
            return
        logger.warning(
            "fencedlock: waiting for lock %r for %.0f s so far; it is held by %s "
            "(host/process/thread), token %s, and %d wait",
            name,
            SLOW_SECONDS,
            info.holder or "nobody just now",
            info.token,
            len(info.waiters),
        )

    def _pause(self, error: BackendUnavailableError) -> None:
        """Sleep a little before the next question, or raise the error when there is no time left."""
        now = now_seconds()
        if self._failing_since is None:
            self._failing_since, self._failures = (
                now if error.asked_at is None else error.asked_at,
                0,
            )
        self._failures += 1
        limit = self._give_up_at()
        wake_at = min(limit, now + pause_seconds(self._failures))
        if not self._claim.patient or wake_at >= limit:
            self._bell.wait(limit - now if self._claim.patient else 0)
            self._raise_if_ended()
            raise error
        self._bell.wait(wake_at - now)

    def _raise_if_ended(self) -> None:
        self._raise_if_copied()
        raise_if_ended(self._table, self._claim.bound.name, self._cancel)
