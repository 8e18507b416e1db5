"""Detached holds on Redis: what the server keeps, and whom it tells."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.core.lease import LeaseState
from fencedlock.runtime.detaching import digest_of
from tests.conftest import eventually
from tests.proxy import LOSE_REPLY
from tests.servers import RedisServer


def key_of(name: str) -> str:
    return f"fencedlock:{{{name}}}"


def test_the_server_does_not_know_the_secret(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    lock.renew(20)
    owner, secret = client.inspect(name).owner, lock.detach(ttl=600)
    with server.client() as raw:
        found = raw.hgetall(key_of(name))
        assert found[b"owner"].decode() == f"detached:{digest_of(secret)}:{owner}"
        assert not any(secret.encode() in value for value in found.values())
        assert 590_000 < raw.pttl(key_of(name)) <= 600_000
        mine = client.attach(secret, name)
        assert set(raw.hgetall(key_of(name))) == {b"owner", b"token", b"holder"}
        assert raw.pttl(key_of(name)) <= 10_000
    mine.release()


def test_a_hold_whose_token_is_another_s_is_not_detached(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    with server.client() as raw:
        raw.hset(key_of(name), "token", str(int(lock.token) + 1))
        with pytest.raises(fencedlock.LockLostError):
            lock.detach(ttl=600)
        assert not raw.hget(key_of(name), "owner").startswith(b"detached:")
        assert raw.pttl(key_of(name)) < 600_000 - 1_000


def test_a_server_without_memory_detaches_and_attaches(
    own_server: Callable[..., Any], connect: Callable[..., Any], name: str
) -> None:
    server = own_server()
    lock, other = connect(server.url, ttl=60).RLock(name), connect(server.url, ttl=60)
    lock.acquire()
    with server.client() as raw:
        raw.config_set("maxmemory", "1")
        secret = lock.detach()
        mine = other.attach(secret, name)
        mine.renew()
        mine.release()
        raw.config_set("maxmemory", "0")
    assert not other.inspect(name).locked


def test_the_first_waiter_learns_that_the_lock_opens_sooner(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock, key = client.RLock(name, ttl=60), key_of(name)
    with server.client() as raw, raw.pubsub() as ears:
        seconds, _ = raw.time()
        ears.subscribe("fencedlock:inbox:alive")
        assert eventually(ears.get_message)["type"] == "subscribe"

        def wait() -> None:
            raw.zadd(f"{key}:queue", {"alive/1/1": 1})
            raw.hset(f"{key}:waiters", "alive/1/1", f"{seconds * 1_000_000} 10000 0 somebody")

        def heard() -> bool:
            message = ears.get_message(timeout=0.05)
            return message is not None and message["data"] == b"alive/1 look"

        lock.acquire()
        wait()
        secret = lock.detach()  # as long as before
        assert not heard()
        lock.attach(secret)
        assert not heard()
        secret = lock.detach(ttl=30)
        assert heard()
        client.attach(secret, name, ttl=10).release()
        assert heard()


def test_a_beat_between_its_detachment_and_the_answer_does_not_lose_it(
    client: fencedlock.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    lock = client.RLock(name, on_lost=lambda lock, reason: lost.append(reason))
    lock.acquire()
    hold, table = lock._owned(), client._table
    detach, renew = type(hold.bound).detach, table.backend.renew
    asked, beaten = threading.Event(), threading.Event()

    def late(*arguments: Any) -> Any:
        answer = detach(*arguments)
        table.heartbeat.add(hold, 0.0)
        beaten.wait(60)
        return answer

    def beat(*arguments: Any, **options: Any) -> Any:
        asked.set()
        return renew(*arguments, **options)

    def maintain(_now: float) -> None:
        if asked.is_set():
            beaten.set()  # the answer was taken in

    monkeypatch.setattr(type(hold.bound), "detach", late)
    monkeypatch.setattr(table.backend, "renew", beat)
    monkeypatch.setattr(table.backend, "maintain", maintain)
    secret = lock.detach()
    assert hold.state is LeaseState.RELEASED
    client.attach(secret, name).release()
    assert not lost


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_not_begun_to_attach_it(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., Any],
    proxy: Callable[[RedisServer], Any],
    name: str,
) -> None:
    """Its parent did, and has had no answer."""
    wire = proxy(server)
    remote = connect(wire.url, ttl=30, socket_timeout=0.2, outage_timeout=0.3)
    with remote.RLock(f"{name}/warm"):
        pass  # it knows the server's time
    lock = client.RLock(name)
    lock.acquire()
    lock.attach(lock.detach())  # the server has loaded the script
    secret, mine = lock.detach(ttl=60), remote.Lock(name)
    wire.rule = lambda request: LOSE_REPLY if wire.is_operation(request) else None
    with pytest.raises(fencedlock.BackendUnavailableError):
        mine.attach(secret)
    wire.rule = lambda request: None
    pid = os.fork()
    if pid == 0:
        try:
            mine.attach(secret)
        except fencedlock.NotOwnedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    mine.attach(secret)
    mine.release()
