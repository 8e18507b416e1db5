"""Measures a client that holds many locks at once: what their renewal costs the client and the
server, and how much memory they need.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection

import psutil
import redis

import fencedlock
from tests.benchmarks.contestants import LEASE_SECONDS
from tests.benchmarks.tables import Table

_spawn = multiprocessing.get_context("spawn")


def measure(port: int, server_pid: int, counts: list[int], seconds: float) -> Table:
    """Return a table with a row for each number of holds. ``seconds`` should be a multiple of a
    third of the lease, because each hold is renewed once in every third.
    """
    made = Table(
        "holds",
        [
            "locks held by one client",
            "acquired in",
            "kB of client memory each",
            "% of a core, client",
            "% of a core, server",
            "renewals/s",
            "threads of ours",
        ],
    )
    for count in counts:
        receiving, sending = _spawn.Pipe(duplex=False)
        process = _spawn.Process(target=_hold, args=(port, server_pid, count, seconds, sending))
        process.start()
        made.rows.append(receiving.recv())
        process.join()
        with redis.Redis(port=port) as raw:
            raw.flushall()
    return made


def _hold(port: int, server_pid: int, count: int, seconds: float, results: Connection) -> None:
    client = fencedlock.connect(f"redis://127.0.0.1:{port}", ttl=LEASE_SECONDS)
    with client.RLock("warm"):
        pass
    me, server = psutil.Process(), psutil.Process(server_pid)
    gc.collect()
    memory_before = me.memory_info().rss
    begun = time.perf_counter()
    locks = [client.RLock(f"holds/{number}") for number in range(count)]
    for lock in locks:
        lock.acquire()
    acquired_seconds = time.perf_counter() - begun
    gc.collect()
    memory = me.memory_info().rss - memory_before
    # Wait for the first renewals. From then on, the load stays the same.
    time.sleep(LEASE_SECONDS / 3)
    with redis.Redis(port=port) as raw:
        here, there = cpu_seconds(me), cpu_seconds(server)
        calls, begun = _calls(raw), time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - begun
        renewals = (_calls(raw) - calls) / elapsed
    here, there = cpu_seconds(me) - here, cpu_seconds(server) - there
    assert all(lock.remaining() > 0 for lock in locks)
    results.send(
        [
            f"{count:,}",
            f"{acquired_seconds:.1f} s",
            # Fewer holds need less memory than what comes and goes for other reasons.
            f"{memory / count / 1000:.2f}" if count >= 1000 else "-",
            f"{100 * here / elapsed:.2f}",
            f"{100 * there / elapsed:.2f}",
            f"{renewals:.0f}",
            str(threading.active_count() - 1),
        ]
    )
    results.close()
    os._exit(0)  # the time to release that many locks is not measured


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time in seconds that a process has used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _calls(raw: redis.Redis) -> int:
    return int(raw.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])
