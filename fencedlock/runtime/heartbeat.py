"""The heartbeat: one thread that sends the beats for all holds and waiters of a client.

It also repeats what could not be undone at once: releases and withdrawals that had no answer, and
the abandoning of lost holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from fencedlock.clock import Deadline, now_seconds
from fencedlock.core.answers import Renewed
from fencedlock.core.claims import Claim, Hold
from fencedlock.core.lease import NOT_OURS_REASON, LeaseEvent, LeaseState
from fencedlock.core.schedule import Schedules
from fencedlock.errors import BackendUnavailableError, FencedLockError
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.holding import (
    beat_answered,
    beat_failed,
    report_deadline_passed,
    report_lost,
)
from fencedlock.runtime.owners import Dropped
from fencedlock.runtime.releasing import release_collected, release_dropped
from fencedlock.runtime.threads import Worker
from fencedlock.runtime.undos import Undos

logger: logging.Logger = logging.getLogger("fencedlock")

LONGEST_RETRY_SECONDS = 1.0
LEAST_SPARE_SECONDS = 0.02
LONGEST_SLEEP_SECONDS = 3600.0

UNDO_SLICE_SECONDS = 0.05
"""The longest time, in seconds, that undos take in one round, so that beats are sent between them.
"""

_Target = TypeVar("_Target", Hold, Claim)


class Heartbeat:
    """The thread that sends beats for the targets that were given to :meth:`add` or :meth:`begin`.

    The thread starts with the first target.
    """

    def __init__(
        self,
        state: ClientState,
        on_start: Callable[[], object],
        close_client: Callable[[Deadline], object],
    ) -> None:
        self._state = state
        self._on_start = on_start
        self._close_client = close_client
        self._mutex = state.mutex
        self._schedules = Schedules()
        self._undos = Undos()
        self._wake_at = float("inf")
        self._mailbox: SimpleQueue[list[Hold] | Deadline | Dropped | None] = SimpleQueue()
        self.dropped: Callable[[Dropped], None] = self._mailbox.put
        """Receives a reference to a ``with`` statement whose end was interrupted. It is C code, so
        it can't be interrupted itself.
        """
        self._worker = Worker(self._run, "fencedlock-heartbeat")
        self._stop_by: Deadline | None = None
        """The deadline for the end of the thread. None until the thread is to end."""

    @property
    def started(self) -> bool:
        """True once the thread runs, or is about to run."""
        return self._worker.started

    # --- called by other threads

    def add(self, target: Hold | Claim, delay_seconds: float) -> None:
        """Send a beat for the target after this delay, in place of what was planned for it."""
        due = now_seconds() + delay_seconds
        with self._mutex:
            if not target.wants_beats():
                self.discard(target)
                return
            self._schedules.plan(target, delay_seconds, due)
            self._expect(due)

    def begin(self, hold: Hold, delay_seconds: float, due: float) -> None:
        """Send beats for a new hold, which is among :meth:`holds` from then on."""
        self._schedules.newcomers[hold] = delay_seconds, due
        self._expect(due)

    def discard(self, target: Hold | Claim) -> None:
        """Send no more beats for the target."""
        if self._schedules.newcomers.pop(target, None) is None and target.schedule is not None:
            with self._mutex:  # look again, because the thread may have moved it just now
                self._schedules.drop(target)

    def holds(self) -> list[Hold]:
        """Return all holds that get beats. The caller has the mutex of the client, or is alone."""
        return [target for target in self._schedules.targets() if isinstance(target, Hold)]

    def wake_by(self, at: float) -> None:
        """Be awake at this local time, because the backend has something to do."""
        with self._mutex:
            wake = at < self._wake_at
            if wake:
                self._wake_at = at
        if wake:
            self._mailbox.put(None)

    def undo(
        self, what: str, action: Callable[[float], object], moot_at: Callable[[], float]
    ) -> None:
        """Repeat an action in the background until it succeeds or the lease has ended by itself.

        ``what`` names the action in the log. The action receives the request timeout in seconds.
        """
        self._undos.add(what, action, moot_at)
        if not self._worker.running:
            self.start()
        self._mailbox.put(None)

    def collect(self, holds: list[Hold]) -> None:
        """Release holds whose last handle was collected.

        This is safe in a destructor, because it takes no mutex.
        """
        self._mailbox.put(holds)

    def close_client(self, deadline: Deadline) -> None:
        """Have the thread release everything and end.

        This is safe in a destructor, because it takes no mutex.
        """
        self._mailbox.put(deadline)

    def stop(self, deadline: Deadline) -> None:
        """End the thread, after one more try of each undo until the deadline.

        The calling thread makes these tries itself if it is that thread, or if that thread was
        never started.
        """
        self._stop_by = deadline
        if self._worker.started and not self._worker.is_current():
            self._mailbox.put(None)
            self.wait(deadline)
        else:
            self._retry_undos(deadline.at)

    def wait(self, deadline: Deadline) -> None:
        """Wait until the thread has ended, if it was started."""
        self._worker.wait(deadline.left())

    def _expect(self, due: float) -> None:
        """Make sure that the thread runs and is awake at this local time, for a beat."""
        if due < self._wake_at:
            self._wake_at = due
            self._mailbox.put(None)
        if not self._worker.running:
            self.start()

    def start(self) -> None:
        """Start the thread, unless it runs or is to end.

        Raises RuntimeError if no thread can be started, except in an exit handler.
        """
        if self._stop_by is None:
            self._on_start()
            try:
                self._worker.start()
            except RuntimeError:
                # An exit handler takes a lock. It has the lock until the first lease ends.
                if not self._state.at_exit:
                    raise

    # --- the thread

    def _run(self) -> None:
        checked = False
        maintain_at: float | None = None
        while True:
            with self._mutex:
                # While the next time to wake is not known, a thread that adds a newcomer has to
                # wake this one, because the move below may miss the newcomer.
                planned_at, self._wake_at = self._wake_at, float("inf")
                self._wake_at = self._next_due(maintain_at, planned_at)
            try:
                self._take_mail(self._wake_at - now_seconds())
                if self._stop_by is not None:
                    self._retry_undos(self._stop_by.at)
                    return
                with self._mutex:
                    due = self._schedules.take_due(now_seconds())
                self._guarded(self._renew, [hold for hold in due if isinstance(hold, Hold)])
                self._guarded(self._beat, [claim for claim in due if isinstance(claim, Claim)])
                self._retry_undos(now_seconds() + UNDO_SLICE_SECONDS)
                if not checked:
                    checked = True
                    self._warn_of_settings()
                for session in list(self._state.sessions.values()):
                    session.close_if_ended()
                maintain_at = self._state.backend.maintain(now_seconds())
            except BaseException:
                # Signal handlers do not run in this thread, so even SystemExit is not meant for it.
                logger.exception("fencedlock: unexpected error in the heartbeat, which goes on")
                if self._stop_by is not None:
                    return

    def _warn_of_settings(self) -> None:
        try:
            for warning in self._state.backend.check_settings(self._spare_seconds()):
                self._state.observer.server_warned(warning)
        except FencedLockError:
            pass  # the server does not answer, which the beats will report

    def _spare_seconds(self) -> float:
        """Return how many seconds something other than a beat may take."""
        return min(
            self._state.backend.request_timeout_seconds,
            max(LEAST_SPARE_SECONDS, (self._next_beat_at() - now_seconds()) / 2),
        )

    def _next_beat_at(self) -> float:
        """Return the local time at which the next beat is due, infinity if none is planned."""
        with self._mutex:
            return self._schedules.next_due()

    def _next_due(self, maintain_at: float | None, planned_at: float) -> float:
        """Return the local time at which the thread has to wake."""
        due = min(self._schedules.next_due(), self._undos.due)
        if maintain_at is not None:
            due = min(due, maintain_at)
        if planned_at > now_seconds():
            # This time is kept even if the target that it was planned for is gone. Otherwise a lock
            # that is taken and released in a loop would wake this thread each time.
            due = min(due, planned_at)
        return due

    def _take_mail(self, timeout_seconds: float) -> None:
        try:
            mail = self._mailbox.get(timeout=min(LONGEST_SLEEP_SECONDS, max(0.0, timeout_seconds)))
            while True:
                if isinstance(mail, Deadline):
                    self._close_client(mail)
                elif isinstance(mail, Dropped):
                    if mail.hold is not None:
                        release_dropped(self._state, mail.hold)
                elif isinstance(mail, list):
                    for hold in mail:
                        release_collected(self._state, hold)
                mail = self._mailbox.get_nowait()
        except Empty:
            pass

    def _guarded(self, beat: Callable[[list[_Target]], None], due: list[_Target]) -> None:
        """Send the beats. Plan them again after any error, so that no target loses its beats."""
        try:
            beat(due)
        except BaseException:  # as in _run
            logger.exception("fencedlock: unexpected error while sending beats; trying again")
            for target in due:
                self.add(target, target.lease_seconds / 10)

    def _renew(self, due: list[Hold]) -> None:
        holds = self._standing(due)
        if not holds:
            return
        lease_seconds = min(hold.lease_seconds for hold in holds)
        operations = [hold.operation for hold in holds]
        answers = self._state.backend.renew(holds, self._patience_seconds(lease_seconds))
        now = now_seconds()
        for hold, answer, operation in zip(holds, answers, operations, strict=True):
            if isinstance(answer, Renewed):
                beat_answered(self._state, hold, answer, operation)
                self._beat_every(hold, hold.next_beat_seconds(now))
            elif isinstance(answer, Exception):
                if isinstance(answer, BackendUnavailableError):
                    self._state.outage.began(answer)
                elif hold.state is LeaseState.HELD:
                    self._state.observer.beat_failed(hold, answer)
                beat_failed(self._state, hold)
                retry_seconds = min(LONGEST_RETRY_SECONDS, hold.lease_seconds / 10)
                self.add(hold, min(retry_seconds, max(0.0, hold.deadline - now)))
            else:
                report_lost(self._state, hold, LeaseEvent.NOT_OURS, NOT_OURS_REASON)

    def _standing(self, due: list[Hold]) -> list[Hold]:
        """Return the holds whose owner lives and whose lease has not ended.

        Report the others as lost, except those that were released or reported before.
        """
        now = now_seconds()
        holds = []
        for hold in due:
            if not hold.wants_beats():
                self.discard(hold)
            elif not hold.owner.alive():
                reason = f"its {hold.owner.kind} ended without a release"
                report_lost(self._state, hold, LeaseEvent.OWNER_DIED, reason)
            elif now >= hold.deadline:
                report_deadline_passed(self._state, hold, now)
            elif now > hold.renew_until:
                self.add(hold, hold.deadline - now)
            else:
                holds.append(hold)
        return holds

    def _beat(self, claims: list[Claim]) -> None:
        if not claims:
            return
        lease_seconds = min(claim.lease_seconds for claim in claims)
        answers = self._state.backend.beat(claims, self._patience_seconds(lease_seconds))
        for claim, answer in zip(claims, answers, strict=True):
            if self._state.beat_answered(claim, answer):
                self._beat_every(claim, claim.beat_every_seconds)
            else:
                self.discard(claim)

    def _beat_every(self, target: Hold | Claim, delay_seconds: float) -> None:
        """Send beats with this delay from now on.

        If the target is in the schedule of that delay already, its next beat is planned already.
        """
        if target.schedule is None or target.schedule.delay_seconds != delay_seconds:
            self.add(target, delay_seconds)

    def _patience_seconds(self, lease_seconds: float) -> float:
        """Return how many seconds beats for a lease of this length may wait for the server.

        The beats of other leases have to wait for that time too. So it is at most half of what is
        left of the lease that ends first, among the next targets of all schedules.
        """
        now = now_seconds()
        with self._mutex:
            heads = [target for target, _ in self._schedules.next_ones()]
        ends = [head.deadline if isinstance(head, Hold) else head.alive_until for head in heads]
        least_left = min((end for end in ends if end > now), default=float("inf")) - now
        return min(
            self._state.request_seconds(lease_seconds), max(LEAST_SPARE_SECONDS, least_left / 2)
        )

    def _retry_undos(self, until: float) -> None:
        """Try the undos one after another.

        Stop at the local time ``until``, or when the server does not answer. Unless the thread is
        to end, stop also when a beat is due.
        """
        if now_seconds() < self._undos.due and self._stop_by is None:
            return
        self._undos.retry(
            until,
            lambda now: self._stop_by is None and self._next_beat_at() <= now,
            lambda now: min(
                self._spare_seconds()
                if self._stop_by is None
                else max(LEAST_SPARE_SECONDS, until - now),
                self._state.backend.request_timeout_seconds,
            ),
        )
