"""Measures single operations without contention: on a free lock, nested, and on a lock that another
holds. Server and client are pinned to one CPU, and the contestants alternate in small blocks.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.contestants import CONTESTANTS, Lock
from tests.benchmarks.tables import Table, ratio
from tests.etcd_servers import EtcdServer
from tests.servers import RedisServer

BLOCK = 100
BLOCKS = 10
"""The number of blocks in a round. The result of a round is their median. The blocks of all
contestants alternate.
"""

Prepare = Callable[[Lock, Lock], Callable[[], object]]
"""Makes the function that is measured from two handles of one lock, which belong to two clients."""


def free(lock: Lock, other: Lock) -> Callable[[], object]:
    """Return a function that acquires and releases the lock."""
    acquire, release = lock.acquire, lock.release

    def once() -> None:
        acquire()
        release()

    return once


def nested(lock: Lock, other: Lock) -> Callable[[], object]:
    """Return a function that acquires and releases the lock while it is already held."""
    lock.acquire()
    return free(lock, other)


def held(lock: Lock, other: Lock) -> Callable[[], object]:
    """Return a function that tries once to get the lock while another client holds it."""
    other.acquire()
    assert lock.attempt is not None
    return lock.attempt


def measure(
    server: RedisServer | EtcdServer, prepare: Prepare, labels: list[str], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds that each contestant needs, one value for each round."""
    with on_one_cpu(server):
        measured = {}
        for label in labels:
            lock, other = (
                CONTESTANTS[label](server.port, f"{prepare.__name__}/{label}") for _ in range(2)
            )
            measured[label] = prepare(lock, other)
        times: dict[str, list[float]] = {label: [] for label in labels}
        for round_number in range(rounds + 1):
            blocks: dict[str, list[float]] = {label: [] for label in labels}
            for _ in range(BLOCKS):
                # The order decides whose caches are cold, so it is random.
                for label, once in random.sample(list(measured.items()), len(measured)):
                    begun = time.perf_counter()
                    for _ in range(BLOCK):
                        once()
                    blocks[label].append((time.perf_counter() - begun) / BLOCK)
            if round_number:  # the first round is a warm-up
                for label, seconds in blocks.items():
                    times[label].append(statistics.median(seconds))
        return times


@contextmanager
def on_one_cpu(server: RedisServer | EtcdServer) -> Iterator[None]:
    """Pin the server and this process to one CPU."""
    assert server.process is not None
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    _pin(server.process.pid, one)
    os.sched_setaffinity(0, one)
    try:
        yield
    finally:
        _pin(server.process.pid, everywhere)
        os.sched_setaffinity(0, everywhere)


def _pin(pid: int, cpus: set[int]) -> None:
    """Pin all threads of a process to these CPUs."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def table(name: str, what: str, times: dict[str, list[float]], bases: list[str]) -> Table:
    made = Table(name, [f"{what}, pinned to one CPU", "µs", *(f"x {base}" for base in bases)])
    for label, seconds in times.items():
        median = 1e6 * statistics.median(seconds)
        made.rows.append(
            [
                label,
                f"{median:.1f}" if median >= 1 else f"{median:.3f}",
                *(ratio(seconds, times[base]) for base in bases),
            ]
        )
    return made
