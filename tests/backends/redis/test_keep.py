"""release(keep=...) on a server that has no memory left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from tests.conftest import eventually
from tests.servers import RedisServer


@pytest.mark.parametrize("waits", [False, True])
def test_a_server_without_memory_keeps_a_lock_closed(
    waits: bool, own_server: Callable[..., Any], connect: Callable[..., Any], name: str
) -> None:
    server = own_server()
    lock, other = connect(server.url, ttl=60).RLock(name), connect(server.url, ttl=60)
    lock.acquire()
    with server.client() as raw:
        if waits:
            raw.zadd(f"fencedlock:{{{name}}}:queue", {"somebody/1/1": 1})
        raw.config_set("maxmemory", "1")
        lock.release(keep=600)
        assert raw.hget(f"fencedlock:{{{name}}}", "owner").startswith(b"kept:")
        assert 590_000 < raw.pttl(f"fencedlock:{{{name}}}") <= 600_000
        raw.config_set("maxmemory", "0")
    assert other.RLock(name).acquire(timeout=0) is False
    assert other.force_release(name) is not None
    with other.RLock(name):
        assert other.inspect(name).owner != "kept:"


def test_the_owner_that_people_see_is_the_claim_that_kept_it(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    owner = client.inspect(name).owner
    lock.release(keep=600)
    assert client.inspect(name).owner == owner
    assert client.inspect(name).remaining > 590
    client.force_release(name)


def test_the_first_waiter_that_can_be_reached_learns_when_the_lock_opens(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock, key = client.RLock(name), f"fencedlock:{{{name}}}"
    lock.acquire()
    with server.client() as raw, raw.pubsub() as ears:
        seconds, _ = raw.time()
        for number, (waiter, age_seconds) in enumerate({"late": 20, "deaf": 0, "alive": 0}.items()):
            raw.zadd(f"{key}:queue", {f"{waiter}/1/1": number})
            since_us = (seconds - age_seconds) * 1_000_000
            raw.hset(f"{key}:waiters", f"{waiter}/1/1", f"{since_us} 10000 0 somebody")
        for heard in ("late", "alive"):  # the deaf one has no inbox
            ears.subscribe(f"fencedlock:inbox:{heard}")
            assert eventually(ears.get_message)["type"] == "subscribe"
        lock.release(keep=600)
        message = eventually(ears.get_message)
        assert (message["channel"], message["data"]) == (b"fencedlock:inbox:alive", b"alive/1 look")
        client.force_release(name)


def test_a_hold_whose_token_is_another_s_is_not_kept(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock, key = client.RLock(name), f"fencedlock:{{{name}}}"
    lock.acquire()
    with server.client() as raw:
        raw.hset(key, "token", str(int(lock.token) + 1))
        with pytest.raises(fencedlock.LockLostError):
            lock.release(keep=600)
        assert not raw.hget(key, "owner").startswith(b"kept:")
        assert raw.pttl(key) < 600_000 - 1_000
