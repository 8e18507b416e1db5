"""Anybody may ask a holder to let go, and the holder hears the reason."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
import fencedlock.asyncio
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer

CLASSES = pytest.mark.parametrize("cls", ["RLock", "FairLock", "Lock"])
TTL_SECONDS = 1.5


@pytest.fixture
def client(backend: LockServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    """Its holds have a beat twice in a second."""
    return connect(backend.url, ttl=TTL_SECONDS)


class Asked:
    """A callback that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, str]] = []

    def __call__(self, lock: Any, reason: str) -> None:
        self.told.append((lock, reason))


@CLASSES
@pytest.mark.parametrize("whose", ["handle", "client"])
def test_a_holder_hears_the_reason(
    cls: str,
    whose: str,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    backend: LockServer,
    name: str,
) -> None:
    asked = Asked()
    if whose == "handle":
        lock = getattr(connect(backend.url, ttl=TTL_SECONDS), cls)(name, on_requested=asked)
    else:
        mine = connect(backend.url, ttl=TTL_SECONDS, on_requested=asked)
        lock = getattr(mine, cls)(name)
    assert client.request_release(name, "nobody holds it") is False
    reason = "a deploy\nwants it: 100 % soon, »now«\0"
    with lock:
        assert lock.wanted is None
        assert client.inspect(name).wanted is None
        assert client.request_release(name, reason) is True
        assert client.inspect(name).wanted == reason
        eventually(lambda: asked.told)
        assert asked.told == [(lock, reason)]
        assert lock.wanted == reason
        client.request_release(name, "x" * 1000)
        eventually(lambda: lock.wanted == "x" * 1000)
        lock.renew()
        assert lock.wanted == "x" * 1000
    with pytest.raises(fencedlock.NotOwnedError):
        _ = lock.wanted
    eventually(lambda: len(asked.told) == 2)
    with lock:  # another hold
        assert client.inspect(name).wanted is None
        lock.renew()
        assert lock.wanted is None
    assert len(asked.told) == 2
    eventually(lambda: backend.leftovers(name) == set())


def test_a_holder_that_nobody_else_knows_hears_it(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    other.ask("acquire", name)
    assert client.request_release(name, "please") is True
    eventually(lambda: other.ask("wanted", name) == "please")
    other.ask("release", name)


def test_a_holder_that_nests_hears_it(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name, ttl=60)  # the next beat is far away
    with lock:
        client.request_release(name, "please")
        lock.acquire()
        lock.release()
        lock.renew()
        assert lock.wanted == "please"


@pytest.mark.parametrize("how", ["force", "lapse"])
def test_the_next_holder_is_not_meant(
    how: str, client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """It has the same client, and on etcd the same lease on the server."""
    lock = client.Lock(name, max_hold=TTL_SECONDS)
    lock.acquire()
    client.request_release(name, "please")
    if how == "force":
        client.force_release(name)
    other = client.Lock(name)
    assert other.acquire(timeout=60)
    other.renew()
    assert other.wanted is None
    assert client.inspect(name).wanted is None
    other.release()
    with pytest.raises(fencedlock.LockLostError):
        lock.release()
    eventually(lambda: backend.leftovers(name) == set())


def test_it_is_told_after_the_lease_has_another_length(
    client: fencedlock.Client, name: str
) -> None:
    """On etcd, it depends on the lease before."""
    lock = client.RLock(name)
    with lock:
        client.request_release(name, "please")
        lock.renew(60)
        assert lock.wanted == "please"


def test_it_outlives_the_client_that_has_detached_the_hold(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    mine = connect(backend.url, ttl=10)
    lock = mine.RLock(name)
    lock.acquire()
    client.request_release(name, "please")
    secret = lock.detach(ttl=60)
    mine.close()
    assert client.inspect(name).wanted == "please"
    other = client.attach(secret, name)
    other.renew()
    assert other.wanted == "please"
    other.release()


def test_it_is_told_to_whoever_attaches_the_hold(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    asked = Asked()
    lock = client.RLock(name)
    lock.acquire()
    secret = lock.detach(ttl=60)
    assert client.request_release(name, "please") is True
    mine = connect(backend.url, ttl=TTL_SECONDS).attach(secret, name, on_requested=asked)
    eventually(lambda: asked.told)
    assert mine.wanted == "please"
    mine.release()
    eventually(lambda: backend.leftovers(name) == set())


def test_a_lock_that_is_kept_closed_has_no_holder(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    lock.acquire()
    client.request_release(name, "please")
    lock.release(keep=60)
    assert client.inspect(name).wanted is None
    assert client.request_release(name, "please") is False
    client.force_release(name)


@pytest.mark.parametrize("reason", ["", "x" * 1001, None, 1, b"x", "\ud800"])
def test_what_is_no_reason(reason: Any, client: fencedlock.Client, name: str) -> None:
    with client.RLock(name) as token:
        with pytest.raises(fencedlock.ConfigurationError, match="a reason must be"):
            client.request_release(name, reason)
        assert client.inspect(name).wanted is None
        assert client.inspect(name).token == int(token)
    for callback in (1, "x"):
        with pytest.raises(fencedlock.ConfigurationError, match="on_requested must be"):
            client.RLock(name, on_requested=callback)  # type: ignore[arg-type]


def test_a_client_that_is_closed(client: fencedlock.Client, name: str) -> None:
    client.close()
    with pytest.raises(fencedlock.ConfigurationError):
        client.request_release(name, "please")


def test_tasks_hear_it_by_coroutines_in_their_loop(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        asked: asyncio.Future[tuple[Any, str]] = asyncio.get_running_loop().create_future()

        async def on_requested(lock: Any, reason: str) -> None:
            await asyncio.sleep(0)
            asked.set_result((lock, reason))

        lock = fencedlock.asyncio.RLock(name, client=client, on_requested=on_requested)
        async with lock:
            assert await asyncio.to_thread(client.request_release, name, "please")
            assert await asyncio.wait_for(asked, 60) == (lock, "please")
            assert lock.wanted == "please"

    asyncio.run(main())


def test_a_holder_whose_client_has_waited_before_hears_it_soon(
    server: Any, connect: Callable[..., Any], name: str
) -> None:
    """On Redis: its next beat would come in 100 seconds."""
    client, other = connect(server.url, ttl=300), connect(server.url, ttl=300)
    lock, held, go_on = client.RLock(name), threading.Event(), threading.Event()

    def hold() -> None:
        with other.RLock(name):
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    assert lock.acquire(timeout=0.2) is False  # it has waited
    go_on.set()
    thread.join(60)
    with lock:
        other.request_release(name, "please")
        eventually(lambda: lock.wanted == "please")
