"""Measures locks for tasks: on a free lock, handed over between processes, on many locks at once,
and on one lock that many tasks of a loop wait for.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tests.benchmarks.contestants import LEASE_SECONDS
from tests.benchmarks.handoff import Measured, Run
from tests.benchmarks.tables import Table, ratio
from tests.benchmarks.uncontended import on_one_cpu
from tests.servers import RedisServer

_spawn = multiprocessing.get_context("spawn")

FAIR, PLAIN, HANDLE = (f"fencedlock.asyncio {cls}" for cls in ("FairLock", "RLock", "Lock"))
BLOCKING = "fencedlock FairLock, blocking"
REDIS_ASYNCIO = "redis.asyncio Lock"
FEW = "redis.asyncio Lock, 100 connections"
MANY = "redis.asyncio Lock, a connection each"
"""With the default settings, its thousand tasks get MaxConnectionsError."""
FIFO = "redis-fifo-lock"
WIRE = "two round trips on the loop"

BLOCK = 40
BLOCKS = 10
TASKS = 1000


class Lock(NamedTuple):
    """One lock of one library, for one task, as two functions."""

    acquire: Callable[[], Awaitable[Any]]
    release: Callable[[], Awaitable[Any]]


Make = Callable[[str], Lock]
Open = Callable[[str], Awaitable[Make]]
"""Opens what the tasks of a loop share, from the path of the server's socket. Returns the function
that makes locks by their names.
"""


async def ours(cls: str, path: str) -> Make:
    import logging

    import fencedlock
    import fencedlock.asyncio

    logging.getLogger("fencedlock").setLevel(logging.ERROR)
    client = fencedlock.connect(f"unix://{path}", ttl=LEASE_SECONDS)

    def make(name: str) -> Lock:
        lock = getattr(fencedlock.asyncio, cls)(name, client=client)
        return Lock(lock.acquire, lock.release)

    return make


async def blocking(path: str) -> Make:
    """The blocking lock, as the measure of hand-offs. One task has the loop for itself."""
    import logging

    import fencedlock

    logging.getLogger("fencedlock").setLevel(logging.ERROR)
    client = fencedlock.connect(f"unix://{path}", ttl=LEASE_SECONDS)

    def make(name: str) -> Lock:
        lock = client.FairLock(name)

        async def acquire() -> None:
            lock.acquire()

        async def release() -> None:
            lock.release()

        return Lock(acquire, release)

    return make


async def redis_asyncio(path: str, **pool: Any) -> Make:
    """Polls the server every 0.1 s."""
    import redis.asyncio

    client: Any
    if pool:
        pool |= {"connection_class": redis.asyncio.UnixDomainSocketConnection, "path": path}
        client = redis.asyncio.Redis(connection_pool=redis.asyncio.BlockingConnectionPool(**pool))
    else:
        client = redis.asyncio.Redis(unix_socket_path=path)

    def make(name: str) -> Lock:
        lock = client.lock(f"redis.asyncio/{name}", timeout=LEASE_SECONDS)
        return Lock(lock.acquire, lock.release)

    return make


async def redis_asyncio_of_many(path: str) -> Make:
    """The same with a connection for each task."""
    import redis.asyncio

    client: Any = redis.asyncio.Redis(unix_socket_path=path, max_connections=2 * TASKS)

    def make(name: str) -> Lock:
        lock = client.lock(f"redis.asyncio/{name}", timeout=LEASE_SECONDS)
        return Lock(lock.acquire, lock.release)

    return make


async def fifo_lock(path: str) -> Make:
    """Has a strict queue and a doorbell for each waiter."""
    import redis.asyncio
    import redis_fifo_lock

    client = redis.asyncio.Redis(
        unix_socket_path=path, socket_timeout=None, max_connections=3 * TASKS
    )

    def make(name: str) -> Lock:
        lock = redis_fifo_lock.FifoLock(client, name, lease_ms=LEASE_SECONDS * 1000)
        leases: list[Any] = []

        async def acquire() -> None:
            leases.append(await lock.acquire())

        async def release() -> None:
            await lock.release(leases.pop())

        return Lock(acquire, release)

    return make


class _Ping(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self.answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.answer is not None
        self.answer.set_result(data)

    def ask(self) -> asyncio.Future[bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(b"*1\r\n$4\r\nPING\r\n")
        return self.answer


async def wire(path: str) -> Make:
    """The least that a lock on a server can cost: two round trips of the loop."""
    _, ping = await asyncio.get_running_loop().create_unix_connection(_Ping, path)
    return lambda _: Lock(ping.ask, ping.ask)


CONTESTANTS: dict[str, Open] = {
    FAIR: partial(ours, "FairLock"),
    PLAIN: partial(ours, "RLock"),
    HANDLE: partial(ours, "Lock"),
    BLOCKING: blocking,
    REDIS_ASYNCIO: redis_asyncio,
    FEW: partial(redis_asyncio, max_connections=100, timeout=None),
    MANY: redis_asyncio_of_many,
    FIFO: fifo_lock,
    WIRE: wire,
}


def measure_free(server: RedisServer, labels: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each contestant needs for a free lock, one value for each round."""
    with on_one_cpu(server):
        return asyncio.run(_measure_free(server.socket, labels, rounds))


async def _measure_free(path: str, labels: list[str], rounds: int) -> dict[str, list[float]]:
    locks = {label: (await CONTESTANTS[label](path))(f"free/{label}") for label in labels}
    times: dict[str, list[float]] = {label: [] for label in labels}
    for round_number in range(rounds + 1):
        blocks: dict[str, list[float]] = {label: [] for label in labels}
        for _ in range(BLOCKS):
            for label, lock in random.sample(list(locks.items()), len(locks)):
                begun = time.perf_counter()
                for _ in range(BLOCK):
                    await lock.acquire()
                    await lock.release()
                blocks[label].append((time.perf_counter() - begun) / BLOCK)
        if round_number:  # the first round is a warm-up
            for label, seconds in blocks.items():
                times[label].append(statistics.median(seconds))
    return times


def measure_handoff(path: str, labels: list[str], rounds: int, seconds: float) -> Measured:
    """Measure one lock that a task in each of two processes wants, for each contestant in turn."""
    measured = Measured({label: [] for label in labels}, [])
    for _ in range(rounds):
        for label, runs in measured.runs.items():
            runs.append(_among_processes(label, path, 2, seconds))
    return measured


def _among_processes(label: str, path: str, processes: int, seconds: float) -> Run:
    barrier = _spawn.Barrier(processes)
    pipes, bodies = [], []
    for _ in range(processes):
        receiving, sending = _spawn.Pipe(duplex=False)
        body = _spawn.Process(target=_contender, args=(label, path, seconds, barrier, sending))
        body.start()
        sending.close()
        pipes.append(receiving)
        bodies.append(body)
    counts, waits = zip(*(pipe.recv() for pipe in pipes), strict=True)
    for body in bodies:
        body.join()
    return Run(sum(counts) / seconds, max(waits), max(counts) / max(1, min(counts)), 0.0)


def _contender(label: str, path: str, seconds: float, barrier: Any, results: Connection) -> None:
    async def contend() -> tuple[int, float]:
        lock = (await CONTESTANTS[label](path))(f"handoff/{label}")
        await lock.acquire()
        await lock.release()
        barrier.wait()
        return await _contend(lock, seconds)

    results.send(asyncio.run(contend()))


async def _contend(lock: Lock, seconds: float) -> tuple[int, float]:
    """Return how often this task got the lock, and how long it waited at most."""
    count, longest = 0, 0.0
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        asked = now
        await lock.acquire()
        now = time.perf_counter()
        longest = max(longest, now - asked)
        await lock.release()
        count += 1
        now = time.perf_counter()
    return count, longest


def measure_crowd(
    path: str, labels: list[str], rounds: int, seconds: float, *, one_lock: bool
) -> Measured:
    """Measure a thousand tasks of one loop, which want one lock, or each a lock of its own."""
    measured = Measured({label: [] for label in labels}, [])
    for _ in range(rounds):
        for label, runs in measured.runs.items():
            receiving, sending = _spawn.Pipe(duplex=False)
            body = _spawn.Process(target=_crowd, args=(label, path, seconds, one_lock, sending))
            body.start()
            sending.close()
            runs.append(receiving.recv())
            body.join()
    return measured


def _crowd(label: str, path: str, seconds: float, one_lock: bool, results: Connection) -> None:
    async def crowd() -> Run:
        make = await CONTESTANTS[label](path)
        kind = "one" if one_lock else "own"
        # The locks of others store in themselves who holds them, so each task needs one.
        locks = [
            make(f"{kind}/{label}" if one_lock else f"{kind}/{label}/{number}")
            for number in range(TASKS)
        ]
        begun = time.perf_counter()
        done = await asyncio.gather(*(_contend(lock, seconds) for lock in locks))
        counts, waits = zip(*done, strict=True)
        took = time.perf_counter() - begun
        return Run(sum(counts) / took, max(waits), max(counts) / max(1, min(counts)), 0.0)

    results.send(asyncio.run(crowd()))


def table(
    name: str, title: str, measured: Measured, bases: list[str], *, with_waits: bool = True
) -> Table:
    """Return a table with a row for each contestant."""
    made = Table(name, [title, "acquisitions/s", *(f"x {base}" for base in bases)])
    made.headings += ["longest wait", "busiest/idlest"] if with_waits else []
    rates = {label: [run.rate for run in runs] for label, runs in measured.runs.items()}
    for label, runs in measured.runs.items():
        row = [label, f"{statistics.median(rates[label]):.0f}"]
        row += [ratio(rates[label], rates[base]) for base in bases]
        if with_waits:
            row += [
                f"{1000 * statistics.median(run.longest_wait for run in runs):.0f} ms",
                f"{statistics.median(run.spread for run in runs):.2f}",
            ]
        made.rows.append(row)
    return made
