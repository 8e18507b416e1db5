"""The locks that are compared. Each function makes a lock of the given name.

Peers are imported where they are used, so that each process imports only the one that it runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import redis
import redis_lock

import fencedlock
from fencedlock.backends.etcd.connections import TXN
from fencedlock.backends.etcd.messages import CREATE, EQUAL
from tests.benchmarks.etcd_recipe import M, RecipeMutex, calls

LEASE_SECONDS = 30
_NO_END = timedelta(days=1)

# fencedlock would warn that the server does not persist its data, which is intended here.
logging.getLogger("fencedlock").setLevel(logging.ERROR)
logging.getLogger("redis_lock").setLevel(logging.ERROR)  # it warns of each failed try


class Lock(NamedTuple):
    """One lock of one library, for one thread, as two or three functions."""

    acquire: Callable[[], object]
    release: Callable[[], object]
    attempt: Callable[[], object] | None = None
    """Try once, without waiting."""


Make = Callable[[int, str], Lock]


def ours(scheme: str, kind: str, port: int, name: str) -> Lock:
    lock = getattr(fencedlock.connect(f"{scheme}://127.0.0.1:{port}", ttl=LEASE_SECONDS), kind)(
        name
    )
    return Lock(lock.acquire, lock.release, partial(lock.acquire, False))


def redis_py(port: int, name: str, sleep_seconds: float = 0.1) -> Lock:
    """Polls the server, every 0.1 s by default."""
    lock = _client(port).lock(f"redis-py/{name}", timeout=LEASE_SECONDS, sleep=sleep_seconds)
    return Lock(lock.acquire, lock.release, partial(lock.acquire, blocking=False))


def python_redis_lock(port: int, name: str) -> Lock:
    """BLPOP on a list wakes its waiters. The first one that asks gets the lock."""
    lock = redis_lock.Lock(_client(port), name, expire=LEASE_SECONDS)
    return Lock(lock.acquire, lock.release, partial(lock.acquire, blocking=False))


def pottery_redlock(port: int, name: str) -> Lock:
    """Redlock, here on a single server. It polls at intervals of up to 0.2 s, and starts a pool of
    threads for each call.
    """
    import pottery

    lock = pottery.Redlock(key=name, masters={_client(port)}, auto_release_time=LEASE_SECONDS)
    return Lock(partial(_must, lock.acquire), lock.release)


def py_redis_semaphore(port: int, name: str) -> Lock:
    """BLPOP wakes its waiters. It has a fencing token, and starts a thread for each hold."""
    import redis_semaphore

    lock = redis_semaphore.Mutex(_client(port), name, lock_timeout=float(LEASE_SECONDS))
    return Lock(lambda: _must(lambda: lock.acquire().success), partial(_must, lock.release))


def fifo_lock(port: int, name: str) -> Lock:
    """A lock for asyncio with a strict queue, a doorbell for each waiter and a fencing token.

    Each process has one event loop.
    """
    import asyncio

    import redis.asyncio
    import redis_fifo_lock

    loop = asyncio.new_event_loop()
    lock = redis_fifo_lock.FifoLock(
        redis.asyncio.Redis(port=port, socket_timeout=None), name, lease_ms=LEASE_SECONDS * 1000
    )
    leases: list[Any] = []

    def acquire() -> None:
        leases.append(loop.run_until_complete(lock.acquire()))

    return Lock(acquire, lambda: loop.run_until_complete(lock.release(leases.pop())))


def fencekit_lock(port: int, name: str) -> Lock:
    """A lock with a fencing token. It polls every 0.05 s."""
    import fencekit

    lock = fencekit.DistributedLock(
        redis.Redis(port=port, socket_timeout=None, decode_responses=True)
    )
    handles: list[Any] = []

    def acquire() -> None:
        handles.append(
            lock.acquire(name, ttl=timedelta(seconds=LEASE_SECONDS), blocking=True, wait=_NO_END)
        )

    return Lock(acquire, lambda: lock.release(handles.pop()))


def two_round_trips(port: int, name: str) -> Lock:
    """Not a lock, but two PINGs on a raw socket, to see what they cost."""
    wire = socket.create_connection(("127.0.0.1", port))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping() -> None:
        wire.sendall(b"PING\r\n")
        wire.recv(64)

    return Lock(ping, ping, ping)


def of_one_process(port: int, name: str) -> Lock:
    lock = threading.RLock()
    return Lock(lock.acquire, lock.release)


def of_one_host(port: int, name: str) -> Lock:
    lock = multiprocessing.RLock()
    return Lock(lock.acquire, lock.release)


def etcd_recipe(port: int, name: str) -> Lock:
    mutex = RecipeMutex(port, f"recipe/{name}", 3600)
    return Lock(mutex.lock, mutex.unlock)


def two_transactions(port: int, name: str) -> Lock:
    """Not a lock, but two transactions, to see what they cost. One makes a key and one deletes it,
    each after a compare.
    """
    _, prepare = calls(port)
    transact, key = prepare(TXN), f"bare/{name}".encode()
    make = M.TxnRequest(
        compare=[M.Compare(result=EQUAL, target=CREATE, key=key, create_revision=0)],
        success=[M.RequestOp(request_put=M.PutRequest(key=key, value=b"x"))],
    )
    revisions: list[int] = []

    def first() -> None:
        revisions.append(transact(make).header.revision)

    def second() -> None:
        compare = M.Compare(result=EQUAL, target=CREATE, key=key, create_revision=revisions.pop())
        operation = M.RequestOp(request_delete_range=M.DeleteRangeRequest(key=key))
        assert transact(M.TxnRequest(compare=[compare], success=[operation])).succeeded

    return Lock(first, second)


def _client(port: int) -> redis.Redis:
    # With its default timeout, redis-py 8 would cut the long BLPOPs of some peers short.
    return redis.Redis(port=port, socket_timeout=None)


def _must(acquire: Callable[[], object]) -> None:
    if not acquire():
        raise RuntimeError("a lock gave up")


FAIR, PLAIN = "fencedlock FairLock", "fencedlock RLock"
OURS: dict[str, Make] = {
    FAIR: partial(ours, "redis", "FairLock"),
    PLAIN: partial(ours, "redis", "RLock"),
}
REDIS_PY, PEER = "redis-py Lock", "python-redis-lock"
PEERS: dict[str, Make] = {
    PEER: python_redis_lock,
    REDIS_PY: redis_py,
    "pottery Redlock": pottery_redlock,
    "py-redis-semaphore": py_redis_semaphore,
    "redis-fifo-lock": fifo_lock,
    "fencekit": fencekit_lock,
}
WIRE = "two bare round trips"
PROCESS, HOST = "threading.RLock", "multiprocessing.RLock"
LOCAL: dict[str, Make] = {PROCESS: of_one_process, HOST: of_one_host}
IMPATIENT = "redis-py Lock, polling every 1 ms"

ETCD_FAIR, ETCD_PLAIN = "fencedlock FairLock, etcd", "fencedlock RLock, etcd"
ETCD_OURS: dict[str, Make] = {
    ETCD_FAIR: partial(ours, "etcd", "FairLock"),
    ETCD_PLAIN: partial(ours, "etcd", "RLock"),
}
ETCD_PEER = "recipe of etcd's Go client"
ETCD_WIRE = "two bare transactions"

CONTESTANTS: dict[str, Make] = {
    **OURS,
    **PEERS,
    WIRE: two_round_trips,
    IMPATIENT: partial(redis_py, sleep_seconds=0.001),
    **LOCAL,
    **ETCD_OURS,
    ETCD_PEER: etcd_recipe,
    ETCD_WIRE: two_transactions,
}
