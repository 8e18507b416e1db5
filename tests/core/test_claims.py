"""Claims and holds decide by what they are told, without a server, a thread or a clock."""

from __future__ import annotations

import weakref

import pytest

from fencedlock.core.answers import Waiting
from fencedlock.core.claims import MOST_SPAN_SECONDS, Claim, Hold
from fencedlock.core.lease import LeaseEvent, LeaseState
from tests.core.conftest import LEASE_SECONDS


@pytest.fixture
def hold(claim: Claim) -> Hold:
    return Hold(claim, 7, 100.0, abandoned=False, handle=weakref.ref(claim), siblings={})


def waits(claim: Claim, at: float, issued: int) -> None:
    claim.waiting(Waiting(at, issued, at + 1))


class TestMessagesOfGrants:
    def test_one_that_comes_in_time_is_the_grant_until_the_server_forgets_the_waiter(
        self, claim: Claim
    ) -> None:
        waits(claim, 10.0, issued=5)
        claim.rung(6, abandoned=True, now=12.0)
        assert claim.grant == (6, 10.0 + LEASE_SECONDS, True, True)

    @pytest.mark.parametrize("token", [4, 5])
    def test_one_of_a_grant_that_was_known_when_the_server_said_wait_is_old(
        self, claim: Claim, token: int
    ) -> None:
        waits(claim, 10.0, issued=5)
        claim.rung(token, abandoned=False, now=12.0)
        assert claim.grant is None
        assert not claim.must_ask

    def test_a_later_answer_that_knows_of_fewer_tokens_makes_none_of_them_new(
        self, claim: Claim
    ) -> None:
        waits(claim, 10.0, issued=5)
        waits(claim, 11.0, issued=3)
        claim.rung(5, abandoned=False, now=12.0)
        assert claim.grant is None

    def test_one_that_comes_when_the_server_may_have_given_the_lock_to_another_is_asked_about(
        self, claim: Claim
    ) -> None:
        waits(claim, 10.0, issued=5)
        claim.rung(6, abandoned=False, now=10.0 + LEASE_SECONDS)
        assert claim.grant is None
        assert claim.must_ask

    def test_one_that_overtakes_the_answer_counts_with_it(self, claim: Claim) -> None:
        claim.rung(6, abandoned=False, now=9.0)
        assert claim.grant is None
        waits(claim, 10.0, issued=5)
        assert claim.grant == (6, 10.0 + LEASE_SECONDS, False, True)

    def test_one_that_overtakes_an_answer_that_knows_of_it_is_old(self, claim: Claim) -> None:
        claim.rung(6, abandoned=False, now=9.0)
        waits(claim, 10.0, issued=6)
        assert claim.grant is None

    def test_none_changes_a_grant_that_is_there(self, claim: Claim) -> None:
        claim.granted((6, 50.0, False, False))
        claim.rung(9, abandoned=True, now=12.0)
        assert claim.grant == (6, 50.0, False, False)

    def test_a_waiter_counts_as_alive_for_its_span_at_most(self, claim: Claim) -> None:
        claim.lease_seconds = 60.0
        waits(claim, 10.0, issued=5)
        assert claim.alive_until == 10.0 + MOST_SPAN_SECONDS


class TestLeases:
    def test_an_answer_to_the_latest_operation_sets_the_deadline_and_an_older_one_does_not(
        self, hold: Hold
    ) -> None:
        hold.extend(110.0, hold.operation)
        assert hold.deadline == 110.0
        before = hold.operation
        hold.change_lease(5.0, now=101.0)
        hold.extend(130.0, before)
        assert hold.deadline == 106.0

    @pytest.mark.parametrize(("lease_seconds", "believed"), [(5.0, 55.0), (90.0, 100.0)])
    def test_until_the_server_has_answered_no_more_is_believed_than_before(
        self, hold: Hold, lease_seconds: float, believed: float
    ) -> None:
        hold.change_lease(lease_seconds, now=50.0)
        assert hold.deadline == believed
        assert hold.lasts_until == 100.0  # the server may not have heard of it

    def test_a_loss_is_told_once_and_stays(self, hold: Hold) -> None:
        assert hold.happened(LeaseEvent.BEAT_FAILED) is True
        assert hold.happened(LeaseEvent.BEAT_FAILED) is False
        assert hold.state is LeaseState.UNKNOWN
        assert hold.happened(LeaseEvent.DEADLINE_PASSED, "late") is True
        assert hold.happened(LeaseEvent.NOT_OURS, "taken") is False
        hold.extend(200.0, hold.operation)
        assert (hold.state, hold.reason, hold.remaining(60.0)) == (LeaseState.LOST, "late", 0.0)
