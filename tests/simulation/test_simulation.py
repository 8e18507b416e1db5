"""Simulated runs break no rule, are decided by their seed, and find planted bugs.

``FENCEDLOCK_SIMULATION_MINUTES=10 pytest tests/simulation`` runs for longer. Each run of the tests
begins with another seed, which a failure shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.plants import PLANTS

pytest.importorskip("lupa", reason="lupa is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")
pytest.importorskip("grpc", reason="grpcio is not installed")

SYSTEMS = pytest.mark.parametrize("system", ["redis", "etcd"])
MINUTES = float(os.environ.get("FENCEDLOCK_SIMULATION_MINUTES", "0.5"))
MOST_PLANT_MINUTES = 2
OF_STORES = {"check after the read"}
"""The planted bugs that are in stores, which are not simulated."""


def simulation(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run simulations in a process of their own, because they replace the clock of the library."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@SYSTEMS
@pytest.mark.timeout(60 * (MINUTES + 5))
def test_no_rule_is_broken(system: str) -> None:
    done = simulation(system, "--minutes", f"{MINUTES}")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@SYSTEMS
def test_the_same_seed_gives_the_same_history(system: str) -> None:
    """Whatever the order of sets is."""
    first, second = (
        simulation(system, "--seed", "1", "--runs", "5", "--digests", PYTHONHASHSEED=seed)
        for seed in ("1", "2")
    )
    assert first.returncode == 0, first.stdout + first.stderr
    digests = [line for line in first.stdout.splitlines() if line[0].isdigit()][:5]
    assert len(set(digests)) == 5
    assert digests == [line for line in second.stdout.splitlines() if line[0].isdigit()][:5]


@pytest.mark.timeout(60 * (MOST_PLANT_MINUTES + 2))
@pytest.mark.parametrize("name", sorted(set(PLANTS) - OF_STORES))
def test_a_planted_bug_is_found_from_a_fixed_seed(name: str) -> None:
    plant = PLANTS[name]
    nemeses = ",".join(name for name in plant.nemeses if name != "step-client-clock")
    done = simulation(
        *("redis", "--seed", "1", "--nemeses", nemeses, "--plant", name, "--first"),
        *("--minutes", f"{MOST_PLANT_MINUTES}"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rules = {line.strip().partition(":")[0] for line in done.stdout.splitlines()}
    assert rules & set(plant.rules), done.stdout
