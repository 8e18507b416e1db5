"""Tokens rise even if a Redis server loses its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from tests.servers import RedisServer


def test_tokens_rise_through_flushall_and_restart(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    server = own_server()
    client, stranger = connect(server.url, ttl=2), connect(server.url, ttl=2)
    lock = client.RLock("x")
    with lock as first:
        pass
    with server.client() as raw:
        raw.flushall()  # while free
        with stranger.RLock("x") as second:
            assert second > first
        lock.acquire()
        third = lock.token
        assert third > second
        raw.flushall()  # while held
    with stranger.RLock("x") as fourth:
        assert fourth > third
    with pytest.raises(fencedlock.LockLostError):
        lock.release()
    server.kill()
    server.start()  # it has lost all data
    with lock as fifth:
        assert fifth > fourth


def test_tokens_do_not_fall_below_what_the_client_has_seen(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    """The last token is ahead of the server's clock, and the server forgets it.

    The same happens after a failover to a server whose clock is behind.
    """
    server = own_server()
    client = connect(server.url)
    ahead = int((time.time() + 3600) * 1e6)
    with server.client() as raw:
        raw.hset("fencedlock:{x}:fence", "issued", ahead)
        with client.RLock("x") as before:
            assert int(before) == ahead + 1
        raw.flushall()
    with client.RLock("x") as after:
        assert after > before


@pytest.mark.parametrize("bound", ["ahead_us", "least_ahead_us"])
def test_a_new_connection_raises_the_floor_to_no_more_than_the_server_s_clock(
    bound: str, server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    """A bound is too high after a first answer that took long, or after the clock was set back."""
    with client.RLock(name):
        pass
    backend: Any = client._table.backend
    setattr(backend, bound, getattr(backend, bound) + 3600 * 10**6)
    backend.floors.of_all = 0
    backend._connected_anew()
    with server.client() as raw:
        seconds, micros = raw.time()
    assert abs(backend.floors.of_all - (seconds * 10**6 + micros)) < 60 * 10**6
