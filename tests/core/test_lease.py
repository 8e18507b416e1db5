"""The table of a lease's states."""

from __future__ import annotations

import itertools

from fencedlock.core.lease import LEASE_TRANSITIONS, LeaseEvent, LeaseState


def test_nothing_leaves_lost_and_only_a_refusal_leaves_released() -> None:
    leaving = {
        pair for pair in LEASE_TRANSITIONS if pair[0] in (LeaseState.LOST, LeaseState.RELEASED)
    }
    assert leaving == {(LeaseState.RELEASED, LeaseEvent.RELEASE_REFUSED)}


def test_a_failed_beat_never_loses_the_lease() -> None:
    for state in (LeaseState.HELD, LeaseState.UNKNOWN):
        assert LEASE_TRANSITIONS[state, LeaseEvent.BEAT_FAILED] is LeaseState.UNKNOWN


def test_every_event_of_a_live_lease_is_decided() -> None:
    live = itertools.product(
        (LeaseState.HELD, LeaseState.UNKNOWN), set(LeaseEvent) - {LeaseEvent.RELEASE_REFUSED}
    )
    assert set(live) <= set(LEASE_TRANSITIONS)
