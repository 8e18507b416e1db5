"""Late beats, late doorbells and late answers on Redis. Only this backend has such packets."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD, LOSE, SPLIT, Proxy
from tests.servers import RedisServer


@pytest.fixture
def wire(server: RedisServer, proxy: Callable[[RedisServer], Proxy]) -> Proxy:
    return proxy(server)


@pytest.fixture
def remote(wire: Proxy, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    """A client behind the proxy, whose requests time out soon.

    It has already opened everything that it opens only once.
    """
    remote = connect(wire.url, ttl=3, socket_timeout=0.25)
    with remote.RLock("warm up"):
        remote._table.listen(5)
    return remote


def test_a_late_beat_of_a_claim_that_was_served_does_nothing(
    server: RedisServer,
    client: fencedlock.Client,
    remote: fencedlock.Client,
    wire: Proxy,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    waiter = contender("thread", remote)
    with client.FairLock(name):
        wire.rule = lambda request: (
            HOLD if not wire.held and wire.is_call(request, "acquire", b"beat") else None
        )
        waiter.tell("acquire", name)
        wire.wait_for(lambda: bool(wire.held))
    assert waiter.answer() is True
    waiter.ask("release", name)
    wire.deliver()
    assert not client.inspect(name).locked, "a late beat took the lock for nobody"
    assert not client.inspect(name).waiters


def test_a_stale_doorbell_lets_nobody_in(
    client: fencedlock.Client,
    remote: fencedlock.Client,
    wire: Proxy,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    waiter = contender("thread", remote)
    waiter.ask("make", name, "FairLock", ttl=0.5)
    with client.FairLock(name):
        waiter.tell("acquire", name)
        eventually(lambda: client.inspect(name).waiters)
        wire.reply_rule = lambda reply: HOLD if b"message" in reply and b"/" in reply else None
        wire.rule = lambda request: LOSE
    wire.wait_for(lambda: bool(wire.held_replies))  # granted, but the waiter can't learn of it
    eventually(lambda: not client.inspect(name).locked)  # the grant has lapsed
    with client.FairLock(name) as token:
        wire.rule = lambda request: None
        wire.reply_rule = lambda reply: None
        eventually(lambda: client.inspect(name).waiters)  # the waiter has asked again
        wire.deliver_replies()
        lock = client.FairLock(name)
        for _ in range(20):
            assert lock.info().token == int(token)
            assert not waiter.answered(0.02), "a stale doorbell let a second holder in"
    assert waiter.answer() is True
    assert waiter.ask("token", name) > token


def test_an_old_answer_does_not_lengthen_a_shorter_lease(
    connect: Callable[..., fencedlock.Client], client: fencedlock.Client, wire: Proxy, name: str
) -> None:
    remote = connect(wire.url, ttl=60)
    lock = remote.RLock(name)
    with lock:
        wire.reply_rule = lambda reply: (
            HOLD if b"renewed" in reply and not wire.held_replies else None
        )
        remote._table.heartbeat.add(lock._owned(), 0.0)  # a beat whose answer is held back
        wire.wait_for(lambda: bool(wire.held_replies))
        lock.renew(ttl=5)
        wire.reply_rule = lambda reply: HOLD if b"renewed" in reply else None
        wire.deliver_replies()
        remote._table.heartbeat.add(lock._owned(), 0.0)
        # The next beat has been sent, so the old answer has been read.
        wire.wait_for(lambda: bool(wire.held_replies))
        assert lock.remaining() <= 5
        wire.reply_rule = lambda reply: None


def test_a_hold_is_renewed_while_settings_are_not_answered(
    connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    wire.rule = lambda request: LOSE if b"CONFIG" in request else None
    lock = connect(wire.url, ttl=1).RLock(name)
    with lock:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            lock.ensure_held()
            time.sleep(0.02)


def test_an_answer_that_comes_in_two_pieces_is_read_as_one(
    connect: Callable[..., fencedlock.Client],
    wire: Proxy,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    owner = contender("thread", connect(wire.url, ttl=30))
    # Afterwards the connection is open, and the scripts are loaded.
    for ask in ("acquire", "release"):
        owner.ask(ask, name)
    before = len(wire.requests)
    wire.reply_rule = lambda reply: SPLIT if reply.startswith((b":", b"+gr", b"+rel")) else None
    # There are ten rounds, because the second piece may come so soon that both are read at once.
    for ask in ("acquire", "release") * 10:
        owner.tell(ask, name)
        wire.wait_for(lambda: bool(wire.held_replies))
        wire.deliver_replies()
        assert owner.answer() is (True if ask == "acquire" else None)
    assert sum(Proxy.is_call(request, "release") for request in wire.requests[before:]) == 10, (
        "none was sent again"
    )
