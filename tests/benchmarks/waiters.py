"""Measures many claims that wait for one lock: how long a hand-off takes among few and among many
of them, and what the waiting costs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil
import redis

import fencedlock
from fencedlock.clock import now_seconds
from tests.benchmarks.contestants import LEASE_SECONDS
from tests.benchmarks.holds import cpu_seconds
from tests.benchmarks.tables import Table

_spawn = multiprocessing.get_context("spawn")

PROCESSES = 10
Turn = tuple[int, float, float]
"""A token, the time at which its holder got the lock, and the time at which it began to release it.
"""


def measure(port: int, server_pid: int, counts: list[int], seconds: float) -> Table:
    """Return a table with a row for each number of waiters. They are spread over ten processes."""
    made = Table(
        "waiters",
        [
            "waiting claims in 10 processes",
            "hand-offs",
            "median of one",
            "99 % are below",
            "connections a process",
            "% of a core, 10 clients",
            "% of a core, server",
        ],
    )
    for count in counts:
        made.rows.append(_row(port, server_pid, count, seconds))
    return made


def _row(port: int, server_pid: int, count: int, seconds: float) -> list[str]:
    name = f"waiters/{count}"
    client = fencedlock.connect(f"redis://127.0.0.1:{port}", ttl=LEASE_SECONDS)
    lock = client.FairLock(name)
    lock.acquire()
    raw = redis.Redis(port=port)
    strangers = len(raw.client_list())
    crowd: list[tuple[Any, Connection]] = []
    for _ in range(PROCESSES):
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_wait, args=(port, name, count // PROCESSES, theirs))
        process.start()
        crowd.append((process, ours))
    queue = f"fencedlock:{{{name}}}:queue"
    while raw.zcard(queue) < count:
        time.sleep(0.1)
    # Wait until all waiters have come, idle connections are closed and only beats go on.
    time.sleep(LEASE_SECONDS / 3)
    connections = (len(raw.client_list()) - strangers) / PROCESSES
    processes = [psutil.Process(process.pid) for process, _ in crowd]
    server_process = psutil.Process(server_pid)
    here, there = sum(map(cpu_seconds, processes)), cpu_seconds(server_process)
    time.sleep(seconds)
    clients, server = sum(map(cpu_seconds, processes)) - here, cpu_seconds(server_process) - there
    lock.release()
    # The waiters take turns. Each comes back after its hold, so their number stays the same.
    time.sleep(seconds)
    turns: list[Turn] = []
    for _, ours in crowd:
        ours.send("enough")
        turns += ours.recv()
    for process, _ in crowd:
        process.kill()
        process.join()
    raw.flushall()
    client.close()
    turns.sort()
    gaps = [got - left for (_, _, left), (_, got, _) in itertools.pairwise(turns)]
    return [
        f"{count:,}",
        f"{len(gaps):,}",
        f"{1000 * statistics.median(gaps):.2f} ms",
        f"{1000 * statistics.quantiles(gaps, n=100)[98]:.2f} ms",
        f"{connections:.1f}",
        f"{100 * clients / seconds:.1f}",
        f"{100 * server / seconds:.1f}",
    ]


def _wait(port: int, name: str, count: int, results: Connection) -> None:
    client = fencedlock.connect(f"redis://127.0.0.1:{port}", ttl=LEASE_SECONDS)
    threading.stack_size(256 * 1024)
    turns: list[Turn] = []

    def visit() -> None:
        lock = client.FairLock(name)
        while True:
            lock.acquire()
            got = now_seconds()
            turns.append((int(lock.token), got, now_seconds()))
            lock.release()

    for _ in range(count):
        threading.Thread(target=visit, daemon=True).start()
    results.recv()
    results.send(list(turns))
    time.sleep(3600)
