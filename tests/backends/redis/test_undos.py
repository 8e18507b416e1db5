"""Undos that an outage leaves: their number is bounded, moot ones are dropped, beats come first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import fencedlock
from fencedlock.errors import BackendUnavailableError
from fencedlock.runtime.undos import MOST_UNDOS
from tests.conftest import eventually
from tests.proxy import LOSE, Proxy
from tests.servers import RedisServer


def _never() -> float:
    return float("inf")


def _fail(_timeout_seconds: float) -> None:
    raise BackendUnavailableError("away")


def test_so_many_are_kept_and_no_more(client: fencedlock.Client) -> None:
    heartbeat = client._table.heartbeat
    for _ in range(MOST_UNDOS + 200):
        heartbeat.undo("a test", _fail, _never)
        assert len(heartbeat._undos) <= MOST_UNDOS
    done = threading.Event()
    heartbeat._undos._undos.clear()
    heartbeat.undo("a test", lambda _: done.set(), _never)
    assert done.wait(20)


def test_what_is_moot_is_not_sent(client: fencedlock.Client) -> None:
    sent: list[float] = []
    done = threading.Event()
    heartbeat = client._table.heartbeat
    for _ in range(100):
        heartbeat.undo("a test", sent.append, lambda: 0.0)
    heartbeat.undo("a test", lambda _: done.set(), _never)
    assert done.wait(20)
    assert not sent


@pytest.mark.parametrize("server_is", ["slow", "away"])
def test_beats_come_first(server_is: str, client: fencedlock.Client, name: str) -> None:
    """Beats are sent in time while undos that take many seconds in total are waiting.

    Each undo takes as long as a slow answer, or as long as it may wait for an answer.
    """
    undone = 0

    def undo(timeout_seconds: float) -> None:
        nonlocal undone
        undone += 1
        if server_is == "away":
            time.sleep(timeout_seconds)
            raise BackendUnavailableError("away")
        time.sleep(min(timeout_seconds, 0.02))

    lock = client.RLock(name, ttl=0.6)
    lock.acquire()
    for _ in range(MOST_UNDOS):
        client._table.heartbeat.undo("a test", undo, _never)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        lock.ensure_held()
        time.sleep(0.005)
    assert undone >= (5 if server_is == "away" else 30), "undos starve"
    assert client._table.heartbeat._undos
    lock.release()
    client._table.heartbeat._undos._undos.clear()


def test_a_lock_is_kept_while_what_many_tries_left_is_undone(
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[[RedisServer], Proxy],
    name: str,
) -> None:
    wire = proxy(server)
    client = connect(wire.url, ttl=1, socket_timeout=0.1)
    with client.RLock(name):
        pass
    wire.rule = lambda request: LOSE if wire.is_operation(request) else None
    names = [f"{name}/{number}" for number in range(8)]
    threads = [
        threading.Thread(target=_try_often, args=(client.FairLock(each, ttl=30),)) for each in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    undos = len(client._table.heartbeat._undos)
    assert undos >= 8
    wire.rule = lambda request: None
    with client.RLock(name) as token:
        lock = client.RLock(name)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            lock.ensure_held()
            time.sleep(0.01)
        eventually(lambda: not client._table.heartbeat._undos)
        assert lock.token == token
    for each in names:
        assert server.leftovers(each) <= {":withdrawn"}
        with client.FairLock(each):
            pass


def _try_often(lock: fencedlock.RLock) -> None:
    for _ in range(8):
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.acquire(False)


def test_an_undo_frees_no_newer_hold(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[[RedisServer], Proxy],
    name: str,
) -> None:
    wire = proxy(server)
    lock = connect(wire.url, ttl=30, socket_timeout=0.1).FairLock(name)
    lock.acquire()
    wire.rule = lambda request: LOSE if wire.is_operation(request) else None
    lock.release()  # the background tries this again
    assert client.force_release(name) is not None
    with client.FairLock(name) as token:
        before = len(wire.requests)
        wire.rule = lambda request: None
        wire.wait_for(
            lambda: any(wire.is_call(request, "release") for request in wire.requests[before:])
        )
        eventually(lambda: not lock._client._table.heartbeat._undos)
        assert client.inspect(name).token == int(token)
