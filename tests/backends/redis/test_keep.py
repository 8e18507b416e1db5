"""release(keep=...) on a server that has no memory left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fencedlock


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
