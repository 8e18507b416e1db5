"""How a claim that was not granted at once waits, as steps without I/O, threads and clocks.

:func:`wait_for_grant` is a generator. It yields what has to be done next, and a driver does it: the
thread of :mod:`fencedlock.runtime.waiting`, or a task of an event loop. The driver resumes the
generator under the mutex of the client, because the heartbeat and the inbox change claims too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

from fencedlock.core.answers import Busy, ClaimAnswer, Gone, Grant, Waiting
from fencedlock.core.claims import Claim
from fencedlock.core.pauses import pause_seconds
from fencedlock.errors import BackendError, BackendUnavailableError

SLOW_SECONDS = 10.0
"""The length of a wait after which the log tells who holds the lock."""

_FOR_EVER = float("inf")


class Ask(NamedTuple):
    """Ask the server for the lock, and send the outcome back to the generator."""

    join: bool
    """True if the claim takes a place in the queue when the lock is not free."""
    give_up_at: float
    """The local time at which the caller stops waiting."""


class Sleep(NamedTuple):
    """Sleep until the bell of the claim rings, or until this local time. May return early."""

    until: float


class Pause(NamedTuple):
    """Sleep until the bell rings or until this local time, while the server does not answer."""

    until: float


class KeepPlace(NamedTuple):
    """Have the heartbeat send beats for the claim from now on."""


class TellHolder(NamedTuple):
    """Tell the log who holds the lock."""


Step: TypeAlias = Ask | Sleep | Pause | KeepPlace | TellHolder
Outcome: TypeAlias = ClaimAnswer | BackendUnavailableError
Steps: TypeAlias = Generator[Step, Outcome | None, Grant | None]

_KEEP_PLACE = KeepPlace()
_TELL_HOLDER = TellHolder()


def wait_for_grant(  # noqa: C901, PLR0912, PLR0915 - one branch for each outcome
    claim: Claim,
    outcome: Outcome,
    deadline: float,
    outage_timeout: float,
    now_seconds: Callable[[], float],
    *,
    join: bool,
) -> Steps:
    """Lead a claim from the outcome of its first question to a grant, a time-out or an error.

    Returns the grant. Returns None if the lock is busy and the claim may not wait, or not any
    longer, or if the claim is spent. Raises BackendUnavailableError when the server stays away.
    ``join`` is the same as in :class:`Ask`, until the server has said that the lock is busy.
    """
    slow_at = now_seconds() + SLOW_SECONDS
    failing_since: float | None = None
    failures = 0
    while True:
        if isinstance(outcome, Waiting):
            failing_since = None
            claim.waiting(outcome)
            while claim.grant is None:
                now = now_seconds()
                if now >= deadline:
                    claim.closed = True
                    return None
                if claim.must_ask or now >= claim.recheck_at:
                    claim.must_ask = False
                    break
                until = min(deadline, claim.recheck_at, slow_at)
                if claim.schedule is None:
                    # Most claims are granted before their first beat is due. So the heartbeat
                    # learns of a claim when that beat is due, and not before.
                    beat_at = claim.alive_until - 2 * claim.beat_every_seconds
                    if now >= beat_at:
                        yield _KEEP_PLACE
                    else:
                        until = min(until, beat_at)
                if now >= slow_at:
                    slow_at = _FOR_EVER
                    yield _TELL_HOLDER
                    continue
                yield Sleep(until)
            if claim.grant is not None:
                return claim.grant
        elif isinstance(outcome, tuple):
            claim.granted(outcome)
            return claim.grant
        elif isinstance(outcome, Busy):
            failing_since = None
            claim.may_exist = claim.ticket.unanswered
            if not claim.patient:
                return None
            join = True
        elif isinstance(outcome, Gone):
            if claim.issued is not None:
                claim.spent, claim.may_exist = True, claim.ticket.unanswered
                return None
            raise BackendError(
                "the lock server says that this claim was withdrawn, which nobody did",
                lock=claim.bound.name,
            )
        else:
            now = now_seconds()
            if failing_since is None:
                failing_since = now if outcome.asked_at is None else outcome.asked_at
                failures = 0
            failures += 1
            limit = _give_up_at(deadline, failing_since, outage_timeout)
            wake_at = min(limit, now + pause_seconds(failures))
            is_last = not claim.patient or wake_at >= limit
            yield Pause(wake_at if claim.patient else now)
            if is_last:
                try:
                    raise outcome
                finally:
                    # An error in a variable of a frame that it has passed keeps all frames alive.
                    del outcome
        answer = yield Ask(join, _give_up_at(deadline, failing_since, outage_timeout))
        assert answer is not None
        outcome = answer


def _give_up_at(deadline: float, failing_since: float | None, outage_timeout: float) -> float:
    """Return when the caller stops waiting.

    That is at its deadline, and without one when the server has been away for too long.
    """
    if deadline != _FOR_EVER or failing_since is None:
        return deadline
    return failing_since + outage_timeout
