"""release(keep=...) leaves the lock closed for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD
from tests.servers import LockServer

KEEP_SECONDS = 1.0

CLASSES = pytest.mark.parametrize("cls", ["RLock", "FairLock", "Lock"])


@CLASSES
def test_nobody_gets_the_lock_until_the_time_is_over(
    cls: str, client: fencedlock.Client, other: Contender, backend: LockServer, name: str
) -> None:
    lock = getattr(client, cls)(name)
    token = lock.acquire() and lock.token
    owner = client.inspect(name).owner
    begun = time.monotonic()
    lock.release(keep=KEEP_SECONDS)
    assert not lock.owned()
    with pytest.raises(fencedlock.NotOwnedError):
        lock.release()
    assert lock.acquire(timeout=0) is False  # its own client does not get it either
    assert other.ask("acquire", name, timeout=0) is False
    info = client.inspect(name)
    assert (info.locked, info.owner, info.token) == (True, owner, int(token))
    assert [each.name for each in client.locks(name)] == [name]
    assert lock.acquire(timeout=60)
    assert time.monotonic() - begun >= KEEP_SECONDS
    assert lock.token > token
    assert lock.abandoned is False
    lock.release()
    eventually(lambda: backend.leftovers(name) == set())


@CLASSES
def test_waiters_get_it_in_their_order_when_the_time_is_over(
    cls: str, client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """Their client believes that the lease ends in a minute, and learns that it ends sooner."""
    lock, got = getattr(connect(backend.url, ttl=60), cls)(name), []
    lock.acquire()
    waiting = connect(backend.url, ttl=60)

    def wait(number: int) -> None:
        with waiting.FairLock(name):
            got.append((number, time.monotonic()))

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        eventually(lambda: len(client.inspect(name).waiters) == len(threads))
    begun = time.monotonic()
    lock.release(keep=KEEP_SECONDS)
    for thread in threads:
        thread.join(60)
    assert [number for number, _ in got] == [0, 1, 2]
    assert got[0][1] - begun >= KEEP_SECONDS


@CLASSES
def test_it_may_be_kept_for_longer_than_its_lease(
    cls: str, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """Whoever asks meanwhile changes nothing."""
    lock, other = (connect(backend.url, ttl=1) for _ in range(2))
    mine = getattr(lock, cls)(name)
    mine.acquire()
    mine.renew(1.5)
    begun = time.monotonic()
    mine.release(keep=5)
    assert other.RLock(name).acquire(timeout=0) is False
    assert other.FairLock(name).acquire(timeout=1) is False
    assert other.inspect(name).remaining > 1.5
    waiting = other.FairLock(name)
    assert waiting.acquire(timeout=60)
    assert time.monotonic() - begun >= 5
    assert waiting.abandoned is False
    waiting.release()


def test_a_dead_waiter_delays_nobody_when_the_time_is_over(
    connect: Callable[..., Any],
    contender: Callable[..., Contender],
    backend: LockServer,
    name: str,
) -> None:
    client = connect(backend.url, ttl=60)
    lock, waiting = client.RLock(name), connect(backend.url, ttl=60).FairLock(name)
    lock.acquire()
    dead = contender("process", client)
    dead.ask("make", name, cls="FairLock")
    dead.tell("acquire", name)
    eventually(lambda: len(client.inspect(name).waiters) == 1)
    dead.kill()
    got: list[float] = []

    def wait() -> None:
        with waiting:
            got.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: len(client.inspect(name).waiters) == 2)
    begun = time.monotonic()
    lock.release(keep=KEEP_SECONDS)
    thread.join(100)
    assert got[0] - begun >= KEEP_SECONDS


def test_only_the_last_release_can_keep_it(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    with lock:
        lock.acquire()
        with pytest.raises(fencedlock.ConfigurationError, match="held 2 times"):
            lock.release(keep=1)
        assert lock.depth == 2
        lock.release(keep=0)
    assert not client.inspect(name).locked


@CLASSES
@pytest.mark.parametrize("keep", [-1, float("nan"), float("inf"), "1", True, 1e12, "", [], None])
def test_what_is_no_time_changes_nothing(
    cls: str, keep: Any, client: fencedlock.Client, name: str
) -> None:
    lock = getattr(client, cls)(name)
    with lock:
        with pytest.raises(fencedlock.ConfigurationError, match="keep must be"):
            lock.release(keep=keep)
        lock.ensure_held()
        assert lock.depth == 1


def test_it_stays_closed_when_its_client_is_closed(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    mine = connect(backend.url, ttl=60)
    lock = mine.RLock(name)
    lock.acquire()
    begun = time.monotonic()
    lock.release(keep=KEEP_SECONDS)
    mine.close()
    assert client.RLock(name).acquire(timeout=0) is False
    other = client.RLock(name)
    assert other.acquire(timeout=60)
    assert time.monotonic() - begun >= KEEP_SECONDS
    other.release()


def test_it_can_be_opened_by_force(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    lock = connect(backend.url).RLock(name)
    lock.acquire()
    token = lock.token
    lock.release(keep=600)
    assert client.force_release(name) == token
    with client.RLock(name) as later:
        assert later > token


def test_a_lost_lock_is_not_kept(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    lock = connect(backend.url, ttl=30).RLock(name)
    lock.acquire()
    assert client.force_release(name) is not None
    with client.RLock(name) as token:
        with pytest.raises(fencedlock.LockLostError):
            lock.release(keep=600)
        assert client.inspect(name).token == int(token)
    assert not client.inspect(name).locked


def test_a_beat_that_comes_late_does_not_lengthen_the_time(
    client: fencedlock.Client,
    connect: Callable[..., Any],
    backend: LockServer,
    proxy: Callable[[LockServer], Any],
    name: str,
) -> None:
    wire = proxy(backend)
    remote = connect(wire.url, ttl=60, socket_timeout=5)
    lock = remote.RLock(name)
    lock.acquire()
    lock.renew()  # so that the server has loaded the script
    (hold,) = remote._table.resource(name).holds.values()
    hold.operation += 1  # so that the beat writes the depth
    wire.rule = lambda request: HOLD if wire.is_operation(request) else None
    beat = threading.Thread(target=lambda: remote._table.backend.renew([hold], 5))
    beat.start()
    eventually(lambda: wire.held)
    wire.rule = lambda request: None
    lock.release(keep=KEEP_SECONDS)
    wire.deliver()
    beat.join(60)
    assert client.inspect(name).remaining <= max(KEEP_SECONDS, 2)  # etcd's least lease is longer
    with client.RLock(name):
        pass


def test_it_is_kept_later_if_the_server_does_not_answer(
    new_server: Callable[[], Any], connect: Callable[..., Any], name: str
) -> None:
    server = new_server()
    client, looking = connect(server.url, ttl=30, socket_timeout=0.2), connect(server.url, ttl=30)
    lock = client.RLock(name)
    lock.acquire()
    server.freeze()
    begun = time.monotonic()
    lock.release(keep=4)
    server.thaw()
    assert looking.RLock(name).acquire(timeout=0) is False
    other = looking.RLock(name)
    assert other.acquire(timeout=60)
    assert time.monotonic() - begun < 15  # and not when its lease would have ended
    other.release()
    eventually(lambda: server.leftovers(name) == set())
