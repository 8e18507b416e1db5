"""Everything that is compared: each makes a pair of functions, acquire and release, on a lock of the given name."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import redis
import redis_lock

import fencedlock

Pair = tuple[Callable[[], object], Callable[[], object]]

LEASE_SECONDS = 30

logging.getLogger("fencedlock").setLevel(logging.ERROR)  # the server keeps nothing, on purpose


def fair(port: int, name: str) -> Pair:
    lock = fencedlock.connect(f"redis://127.0.0.1:{port}/0", ttl=LEASE_SECONDS).FairLock(name)
    return lock.acquire, lock.release


def unfair(port: int, name: str) -> Pair:
    lock = fencedlock.connect(f"redis://127.0.0.1:{port}/0", ttl=LEASE_SECONDS).RLock(name)
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


LOCKS: dict[str, Callable[[int, str], Pair]] = {
    "fencedlock FairLock": fair,
    "fencedlock RLock": unfair,
    "python-redis-lock": python_redis_lock,
    "redis-py Lock": redis_py,
}
WIRE = "two bare round trips"
