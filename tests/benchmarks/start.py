"""Measures what a process pays for its first lock."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from tests.benchmarks.tables import Table

_STARTS = {
    "python -c pass": "",
    "import redis": "import redis",
    "import fencedlock": "import fencedlock",
    "redis-py: first acquire and release": (
        "import redis; lock = redis.Redis(port={port}).lock('start', timeout=30); lock.acquire(); "
        "lock.release()"
    ),
    "fencedlock: first acquire and release": (
        "import logging, fencedlock; logging.disable(); lock = "
        "fencedlock.connect('redis://127.0.0.1:{port}').RLock('start'); lock.acquire(); "
        "lock.release()"
    ),
}


def measure(port: int, rounds: int) -> Table:
    """Measure whole processes from their start to their end, each in turn."""
    seconds: dict[str, list[float]] = {what: [] for what in _STARTS}
    for _ in range(rounds + 1):
        for what, code in _STARTS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code.format(port=port)], check=True)
            seconds[what].append(time.perf_counter() - begun)
    bare = statistics.median(seconds["python -c pass"][1:])
    made = Table("start", ["a whole process", "ms", "ms beyond Python itself"])
    for what, each in seconds.items():
        median = statistics.median(each[1:])
        made.rows.append([what, f"{1000 * median:.0f}", f"{1000 * (median - bare):.0f}"])
    return made
