"""Bugs that somebody might make are caught by the rules that they break."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.plants import PLANTS
from tests.faults.run import Report
from tests.servers import any_redis_server

MOST_TRIES = 30  # the first ones suffice but on a busy machine
SECONDS = 5.0
ONLY_SIMULATED = {"floor as a number"}
"""The planted bugs that need a nemesis of the simulation."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(set(PLANTS) - ONLY_SIMULATED))
def test_a_planted_bug_is_caught(name: str, run: Callable[..., Report]) -> None:
    """Try several times, because random choices and the machine make each run different."""
    plant = PLANTS[name]
    found: set[str] = set()
    for seed in range(MOST_TRIES):
        report = run(any_redis_server(), plant.nemeses, seed, SECONDS, plant=name)
        found |= {violation.rule for violation in report.violations}
        if found & set(plant.rules):
            return
    pytest.fail(f"{MOST_TRIES} runs have not shown it; they found {found or 'nothing'}")
