"""Acquire and release with nobody else around, server and client pinned to one CPU, in small alternating blocks."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from tests.benchmarks.contestants import CONTESTANTS
from tests.etcd_servers import EtcdServer
from tests.servers import RedisServer

BLOCK = 100


def measure(server: RedisServer | EtcdServer, labels: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds for each acquire and release, one value a round."""
    assert server.process is not None
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    _pin(server.process.pid, one)
    os.sched_setaffinity(0, one)
    try:
        pairs = {label: CONTESTANTS[label](server.port, "uncontended") for label in labels}
        times: dict[str, list[float]] = {label: [] for label in pairs}
        for round_number in range(rounds + 1):
            for label, (acquire, release) in pairs.items():
                begun = time.perf_counter()
                for _ in range(BLOCK):
                    acquire()
                    release()
                if round_number:  # the first one warms up
                    times[label].append((time.perf_counter() - begun) / BLOCK)
        return times
    finally:
        _pin(server.process.pid, everywhere)
        os.sched_setaffinity(0, everywhere)


def _pin(pid: int, cpus: set[int]) -> None:
    """All threads of a process."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


def table(times: dict[str, list[float]], peers: list[str]) -> list[list[str]]:
    medians = {label: statistics.median(values) for label, values in times.items()}
    rows = [["uncontended, pinned to one CPU", "µs", *(f"x {peer}" for peer in peers)]]
    for label, median in medians.items():
        rows.append([label, f"{1e6 * median:.1f}", *(f"{median / medians[peer]:.2f}" for peer in peers)])
    return rows
