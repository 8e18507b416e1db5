"""The sleep that is on the way of each hand-off, and the general step that is its twin."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencedlock.core.answers import Grant, Waiting
from fencedlock.core.claims import BoundLock, Claim
from fencedlock.core.roles import Owner
from fencedlock.core.waiting import Sleep, Step, wait_for_grant
from fencedlock.runtime import waiting
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.deadlocks import SUSPICION_SECONDS
from fencedlock.runtime.interrupts import make_mutex
from fencedlock.runtime.waiting import LONGEST_SLEEP_SECONDS, ThreadWait

NOW = 100.0
ASKED_AT = NOW - 0.01
LEASE_SECONDS = 0.15  # a beat every 0.05 s: sooner than a suspicion
DOORBELLS = (None, (5, False), (9, True))
"""None has come, an old one, and one that grants."""


def a_claim(doorbell: tuple[int, bool] | None, must_ask: bool) -> Claim:
    bound = SimpleNamespace(name="x", begin=lambda: SimpleNamespace(unanswered=False))
    owner = cast("Owner", SimpleNamespace(id=1, thread=None))
    claim = Claim("c/1/1", cast("BoundLock", bound), owner, LEASE_SECONDS, fair=True, patient=True)
    claim.doorbell, claim.must_ask = doorbell, must_ask
    return claim


class Backend:
    """Records how long a thread sleeps, and grants meanwhile or does not."""

    def __init__(self, claim: Claim, grant: Grant | None) -> None:
        self.slept: list[float] = []
        self._claim = claim
        self._grant = grant

    def wait(self, _bell: object, seconds: float) -> None:
        self.slept.append(seconds)
        self._claim.grant = self._grant


def first_step(claim: Claim, answer: Waiting, deadline: float) -> Step | Grant | None:
    steps = wait_for_grant(claim, answer, deadline, 5.0, lambda: NOW, join=True)
    try:
        return steps.send(None)
    except StopIteration as stop:
        grant: Grant | None = stop.value
        return grant


@pytest.mark.parametrize(
    ("doorbell", "must_ask", "recheck_after", "deadline_after", "granted"),
    list(
        itertools.product(
            DOORBELLS, (False, True), (0.01, 0.045, 60.0), (0.02, 0.6, float("inf")), (False, True)
        )
    ),
)
def test_the_first_sleep_is_as_long_as_its_step_says(
    doorbell: tuple[int, bool] | None,
    must_ask: bool,
    recheck_after: float,
    deadline_after: float,
    granted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "now_seconds", lambda: NOW)
    answer, deadline = Waiting(ASKED_AT, 7, NOW + recheck_after), NOW + deadline_after
    step = first_step(a_claim(doorbell, must_ask), answer, deadline)

    claim = a_claim(doorbell, must_ask)
    backend = Backend(claim, (8, NOW + 1, False, True) if granted else None)
    state: Any = SimpleNamespace(
        mutex=make_mutex(),
        backend=backend,
        closed=False,
        at_exit=False,
        client_id="c",
        expect=lambda _: None,
    )
    wait = ThreadWait(cast("ClientState", state), claim, deadline, None)
    grant = wait._sleep_once(answer)

    if isinstance(step, Sleep):
        longest = SUSPICION_SECONDS if deadline == float("inf") else LONGEST_SLEEP_SECONDS
        assert backend.slept == [pytest.approx(min(step.until - NOW, longest))]
        assert grant is backend._grant
    else:
        assert backend.slept == []
        assert grant == (step if type(step) is tuple else None)


def test_a_sleep_without_a_grant_goes_on_by_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps begin with the same answer, which was recorded already, and end the wait."""
    clock = [NOW]
    monkeypatch.setattr(waiting, "now_seconds", lambda: clock[0])
    claim = a_claim(None, must_ask=False)
    deadline = NOW + 0.02

    def wait(_bell: object, seconds: float) -> None:
        clock[0] += seconds

    state: Any = SimpleNamespace(
        mutex=make_mutex(),
        backend=SimpleNamespace(wait=wait),
        closed=False,
        at_exit=False,
        client_id="c",
        expect=lambda _: None,
        listening=True,
        outage_timeout=5.0,
    )
    grant = ThreadWait(cast("ClientState", state), claim, deadline, None).for_grant(
        Waiting(ASKED_AT, 7, NOW + 60.0)
    )
    assert grant is None
    assert claim.closed
    assert clock[0] == pytest.approx(deadline)
