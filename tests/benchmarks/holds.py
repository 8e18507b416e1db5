"""Many locks held at once by one client: what their renewal costs here and at the server, and what
they take of memory.
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
    """``seconds`` should be some thirds of the lease, for each third brings a renewal of each."""
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
    # Until the first renewals: from here on, the load is what it stays.
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
            # Of fewer, it is less than what comes and goes besides.
            f"{memory / count / 1000:.2f}" if count >= 1000 else "-",
            f"{100 * here / elapsed:.2f}",
            f"{100 * there / elapsed:.2f}",
            f"{renewals:.0f}",
            str(threading.active_count() - 1),
        ]
    )
    results.close()
    os._exit(0)  # the releases of so many are not of interest here


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has used of all CPUs so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _calls(raw: redis.Redis) -> int:
    return int(raw.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])
