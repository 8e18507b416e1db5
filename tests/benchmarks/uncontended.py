"""Acquire and release with nobody else around, server and client pinned to one CPU, in small alternating blocks."""

from __future__ import annotations

import os
import statistics
import time

from tests.benchmarks.contestants import LOCKS, WIRE, two_round_trips
from tests.servers import RedisServer

BLOCK = 100


def measure(server: RedisServer, rounds: int) -> dict[str, list[float]]:
    """Seconds for each acquire and release, one value a round."""
    assert server.process is not None
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    os.sched_setaffinity(server.process.pid, one)
    os.sched_setaffinity(0, one)
    try:
        pairs = {label: make(server.port, "uncontended") for label, make in {**LOCKS, WIRE: two_round_trips}.items()}
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
        os.sched_setaffinity(server.process.pid, everywhere)
        os.sched_setaffinity(0, everywhere)


def table(times: dict[str, list[float]]) -> list[list[str]]:
    medians = {label: statistics.median(values) for label, values in times.items()}
    rows = [["uncontended, pinned to one CPU", "µs", "x redis-py Lock", "x two bare round trips"]]
    for label, median in medians.items():
        rows.append([label, f"{1e6 * median:.1f}", f"{median / medians['redis-py Lock']:.2f}", f"{median / medians[WIRE]:.2f}"])
    return rows
