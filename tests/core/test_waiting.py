"""How a claim waits, driven step by step with a clock that stands still between the steps."""

from __future__ import annotations

import pytest

from fencedlock.core.answers import Busy, Gone, Grant, Waiting
from fencedlock.core.claims import Claim
from fencedlock.core.schedule import Schedule
from fencedlock.core.waiting import (
    SLOW_SECONDS,
    Ask,
    KeepPlace,
    Outcome,
    Pause,
    Sleep,
    Step,
    TellHolder,
    wait_for_grant,
)
from fencedlock.errors import BackendError, BackendUnavailableError
from tests.core.conftest import LEASE_SECONDS

FOR_EVER = float("inf")
OUTAGE_SECONDS = 5.0
BEAT_SECONDS = LEASE_SECONDS / 3


class Driver:
    """Takes no step by itself: a test tells what has come of each, and when."""

    def __init__(self, claim: Claim, outcome: Outcome, deadline: float = FOR_EVER) -> None:
        self.claim = claim
        self.now = 0.0
        self.steps = wait_for_grant(
            claim, outcome, deadline, OUTAGE_SECONDS, lambda: self.now, join=False
        )

    def step(self, now: float, outcome: Outcome | None = None) -> Step:
        """The next step, at this time, after this outcome of the last one."""
        self.now = now
        return self.steps.send(outcome)

    def end(self, now: float, outcome: Outcome | None = None) -> Grant | None:
        """What the wait ends with."""
        self.now = now
        with pytest.raises(StopIteration) as stopped:
            self.steps.send(outcome)
        grant: Grant | None = stopped.value.value
        return grant


def waiting(at: float, *, recheck_at: float = 100.0, issued: int = 5) -> Waiting:
    return Waiting(at, issued, recheck_at)


@pytest.fixture
def kept(claim: Claim) -> Claim:
    """A claim that the heartbeat knows already."""
    claim.schedule = Schedule(BEAT_SECONDS)
    return claim


def test_a_grant_is_the_end(claim: Claim) -> None:
    grant = (7, 9.0, False, False)
    assert Driver(claim, grant).end(0) == grant
    assert claim.grant == grant


def test_a_busy_lock_is_the_end_for_a_claim_that_may_not_wait(claim: Claim) -> None:
    claim.patient, claim.may_exist = False, True
    assert Driver(claim, Busy()).end(0) is None
    assert not claim.may_exist


def test_a_claim_that_may_wait_asks_for_a_place(claim: Claim) -> None:
    assert Driver(claim, Busy(), 8.0).step(0) == Ask(join=True, give_up_at=8.0)


def test_a_busy_lock_does_not_unmake_a_packet_without_an_answer(claim: Claim) -> None:
    claim.patient, claim.ticket.unanswered = False, True
    assert Driver(claim, Busy()).end(0) is None
    assert claim.may_exist


def test_a_claim_with_a_place_sleeps_until_its_deadline(kept: Claim) -> None:
    driver = Driver(kept, waiting(0), deadline=4.0)
    assert driver.step(0) == Sleep(4.0)
    assert driver.step(3.9) == Sleep(4.0)
    assert driver.end(4.0) is None
    assert kept.closed


def test_it_asks_again_when_the_lease_of_the_holder_may_have_ended(kept: Claim) -> None:
    driver = Driver(kept, waiting(0, recheck_at=3.0))
    assert driver.step(0) == Sleep(3.0)
    assert driver.step(3.0) == Ask(join=False, give_up_at=FOR_EVER)
    assert driver.step(3.0, waiting(3.0)) == Sleep(SLOW_SECONDS)


def test_it_asks_again_when_it_is_told_to(kept: Claim) -> None:
    driver = Driver(kept, waiting(0))
    driver.step(0)
    kept.must_ask = True
    assert isinstance(driver.step(1), Ask)
    assert not kept.must_ask


def test_a_message_of_a_grant_ends_the_sleep(kept: Claim) -> None:
    driver = Driver(kept, waiting(0))
    driver.step(0)
    kept.rung(6, abandoned=True, now=1.0)
    assert driver.end(1) == (6, LEASE_SECONDS, True, True)


def test_the_heartbeat_learns_of_a_claim_when_its_first_beat_is_due(claim: Claim) -> None:
    driver = Driver(claim, waiting(0))
    assert driver.step(0) == Sleep(BEAT_SECONDS)
    assert driver.step(BEAT_SECONDS) == KeepPlace()
    claim.schedule = Schedule(BEAT_SECONDS)
    assert driver.step(BEAT_SECONDS) == Sleep(SLOW_SECONDS)


def test_a_long_wait_is_told_once(kept: Claim) -> None:
    driver = Driver(kept, waiting(0))
    assert driver.step(0) == Sleep(SLOW_SECONDS)
    assert driver.step(SLOW_SECONDS) == TellHolder()
    assert driver.step(SLOW_SECONDS) == Sleep(100.0)


def test_a_claim_that_lost_its_place_is_spent(kept: Claim) -> None:
    driver = Driver(kept, waiting(0, recheck_at=1.0))
    driver.step(0)
    driver.step(1)
    assert driver.end(1, Gone()) is None
    assert kept.spent


def test_a_claim_without_a_place_can_lose_none(claim: Claim) -> None:
    with pytest.raises(BackendError, match="nobody did"):
        Driver(claim, Gone()).step(0)


def test_a_server_that_does_not_answer_is_asked_until_the_deadline(claim: Claim) -> None:
    error = BackendUnavailableError("gone")
    driver = Driver(claim, error, deadline=1.0)
    first = driver.step(0)
    assert isinstance(first, Pause)
    assert 0 <= first.until < 1
    assert driver.step(0.5) == Ask(join=False, give_up_at=1.0)
    assert isinstance(driver.step(1.0, error), Pause)
    with pytest.raises(BackendUnavailableError) as caught:
        driver.step(1.0)
    assert caught.value is error


def test_without_a_deadline_it_is_asked_until_the_outage_timeout(claim: Claim) -> None:
    error = BackendUnavailableError("gone")
    driver = Driver(claim, error)
    driver.step(0)
    assert driver.step(1) == Ask(join=False, give_up_at=OUTAGE_SECONDS)
    assert driver.step(OUTAGE_SECONDS, error) == Pause(OUTAGE_SECONDS)
    with pytest.raises(BackendUnavailableError):
        driver.step(OUTAGE_SECONDS)


def test_an_answer_ends_the_outage(claim: Claim) -> None:
    error = BackendUnavailableError("gone")
    driver = Driver(claim, error)
    driver.step(0)
    driver.step(4)
    assert driver.step(4, Busy()) == Ask(join=True, give_up_at=FOR_EVER)
    driver.step(4.5, error)
    assert driver.step(4.5) == Ask(join=True, give_up_at=4.5 + OUTAGE_SECONDS)


def test_a_claim_that_may_not_wait_raises_at_once(claim: Claim) -> None:
    claim.patient = False
    driver = Driver(claim, BackendUnavailableError("gone"))
    assert driver.step(2) == Pause(2)
    with pytest.raises(BackendUnavailableError):
        driver.step(2)
