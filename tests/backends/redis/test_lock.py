"""What the scripts' short ways share with the long ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fencedlock
from fencedlock import FencingToken
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import RedisServer


def test_a_hold_begins_without_what_the_one_before_it_left(
    server: RedisServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    """A hand-over writes the next grant over the last one."""
    next_one = contender("thread", client)
    next_one.ask("make", name, "FairLock")
    lock = client.FairLock(name)
    lock.acquire()
    for _ in range(5):  # the operations of the first hold go up to 10
        lock.acquire()
        lock.release()
    client.raise_floor(FencingToken(name, int(lock.token) + 5))
    next_one.tell("acquire", name)
    eventually(lambda: client.inspect(name).waiters)
    lock.release()
    assert next_one.answer() is True
    with server.client() as raw:
        assert not set(raw.hgetall(f"fencedlock:{{{name}}}")) & {"operation", "floor", "abandoned"}
    assert next_one.ask("acquire", name)
    assert client.inspect(name).count == 2
    next_one.ask("release", name)
    next_one.ask("release", name)


def test_a_try_that_passes_over_a_deaf_waiter_is_a_hold_like_others(
    server: RedisServer, client: fencedlock.Client, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    """The waiter is granted the lock first, does not hear of it, and has cost a token."""
    deaf = connect(server.url, ttl=30)
    lock = client.FairLock(name, ttl=0.5)
    with lock as before, server.client() as raw:
        place = f"{deaf.id}/1/1"
        seconds, _ = raw.time()
        raw.zadd(f"fencedlock:{{{name}}}:queue", {place: seconds * 1_000_000})
        raw.hset(f"fencedlock:{{{name}}}:waiters", place, f"{(seconds + 60) * 1_000_000} 10000 0 somebody")
        fence = f"fencedlock:{{{name}}}:fence"
    assert lock.acquire(False)
    with server.client() as raw:
        issued, ended = raw.hmget(fence, "issued", "ended")
        assert int(lock.token) == int(issued) > int(ended) > int(before)
        raw.delete(f"fencedlock:{{{name}}}", f"fencedlock:{{{name}}}:queue")  # as if its lease had run out
        other = connect(server.url).FairLock(name)
        assert other.acquire(False)
        assert other.abandoned
        assert other.token.value > int(issued)
        other.release()
    try:
        lock.release()
    except fencedlock.LockLostError:
        pass


def test_tokens_rise_above_what_this_client_has_seen_when_the_servers_clock_goes_back(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with lock:
        pass
    seen = int(lock._terms.latest.number) + 10**12  # type: ignore[union-attr]
    client._table.backend.saw(name, seen, 0.0)
    with lock as token:
        assert int(token) == seen + 1


def test_the_lease_of_the_ordinary_grant_ends_here_before_it_ends_there(client: fencedlock.Client, name: str) -> None:
    with client.RLock(name):
        pass
    lock = client.RLock(name, ttl=7.0004)  # the server counts whole milliseconds
    with lock:
        there = lock.info().remaining
        assert 0 < lock.remaining() < there + 0.001


def test_a_release_compares_the_token_too(server: RedisServer, client: fencedlock.Client, name: str) -> None:
    lock, key = client.RLock(name), f"fencedlock:{{{name}}}"
    lock.acquire()
    with server.client() as raw:
        raw.hset(key, "token", str(int(lock.token) + 1))
        with pytest.raises(fencedlock.LockLostError):
            lock.release()
        assert raw.exists(key)
