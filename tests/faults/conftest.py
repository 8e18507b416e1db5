"""Makes runs for tests. Each has a folder of its own, and registers in SQLite and in the PostgreSQL
of this worker.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.databases import DatabaseServer
from tests.faults.run import Report, Run, prepared_stores, why_not
from tests.faults.targets import TARGETS


@pytest.fixture
def run(database_server: Callable[[str], DatabaseServer]) -> Iterator[Callable[..., Report]]:
    """Lets nemeses loose on servers of a kind for some seconds, and returns the report."""
    with ExitStack() as stack:

        def last(
            kind: str, nemeses: tuple[str, ...], seed: int, seconds: float, plant: str = ""
        ) -> Report:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flrun")))
            target = TARGETS[kind](folder)
            reasons = {
                nemesis: why_not(target, nemesis.name)
                for nemesis in target.nemeses
                if nemesis.name in nemeses
            }
            possible = [nemesis for nemesis, reason in reasons.items() if reason is None]
            if not possible:
                pytest.skip("; ".join(reason for reason in reasons.values() if reason))
            stores = prepared_stores(folder, database_server("postgresql").new_database())
            return Run(target, possible, seed, folder, stores, plant=plant).last(seconds)

        yield last
