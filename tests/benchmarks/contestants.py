"""Everything that is compared: each makes a pair of functions, acquire and release, on a lock of the given name."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

import redis
import redis_lock

import fencedlock
from fencedlock.backends.etcd.connections import TXN
from fencedlock.backends.etcd.messages import CREATE, EQUAL
from tests.benchmarks.etcd_recipe import M, RecipeMutex, calls

Pair = tuple[Callable[[], object], Callable[[], object]]

LEASE_SECONDS = 30

logging.getLogger("fencedlock").setLevel(logging.ERROR)  # the server keeps nothing, on purpose


def ours(scheme: str, kind: str, port: int, name: str) -> Pair:
    lock = getattr(fencedlock.connect(f"{scheme}://127.0.0.1:{port}", ttl=LEASE_SECONDS), kind)(name)
    return lock.acquire, lock.release


def redis_py(port: int, name: str) -> Pair:
    lock = redis.Redis(port=port).lock(f"redis-py/{name}", timeout=LEASE_SECONDS)
    return lock.acquire, lock.release


def python_redis_lock(port: int, name: str) -> Pair:
    lock = redis_lock.Lock(redis.Redis(port=port), name, expire=LEASE_SECONDS)
    return lock.acquire, lock.release


def two_round_trips(port: int, name: str) -> Pair:
    """Not a lock: what two PINGs on a raw socket cost."""
    wire = socket.create_connection(("127.0.0.1", port))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping() -> None:
        wire.sendall(b"PING\r\n")
        wire.recv(64)

    return ping, ping


def etcd_recipe(port: int, name: str) -> Pair:
    mutex = RecipeMutex(port, f"recipe/{name}", 3600)
    return mutex.lock, mutex.unlock


def two_transactions(port: int, name: str) -> Pair:
    """Not a lock: what making and deleting a key costs, each under a compare."""
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

    return first, second


LOCKS: dict[str, Callable[[int, str], Pair]] = {
    "fencedlock FairLock": partial(ours, "redis", "FairLock"),
    "fencedlock RLock": partial(ours, "redis", "RLock"),
    "python-redis-lock": python_redis_lock,
    "redis-py Lock": redis_py,
}
WIRE = "two bare round trips"
PEER = "python-redis-lock"

ETCD_LOCKS: dict[str, Callable[[int, str], Pair]] = {
    "fencedlock FairLock, etcd": partial(ours, "etcd", "FairLock"),
    "fencedlock RLock, etcd": partial(ours, "etcd", "RLock"),
    "recipe of etcd's Go client": etcd_recipe,
}
ETCD_WIRE = "two bare transactions"
ETCD_PEER = "recipe of etcd's Go client"

CONTESTANTS = LOCKS | ETCD_LOCKS | {WIRE: two_round_trips, ETCD_WIRE: two_transactions}
