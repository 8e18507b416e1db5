"""connect() and configure(), and the arguments that they refuse before any I/O."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import pytest

import fencedlock
from fencedlock import connecting
from tests.servers import RedisServer


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(connecting, "_default", None)
    monkeypatch.delenv("FENCEDLOCK_URL", raising=False)
    yield
    if connecting._default is not None:
        connecting._default.close()


@pytest.mark.usefixtures("no_default")
class TestDefault:
    def test_there_is_no_silent_one(self) -> None:
        with pytest.raises(fencedlock.ConfigurationError, match="FENCEDLOCK_URL") as caught:
            fencedlock.RLock("x")
        assert isinstance(caught.value, ValueError)

    def test_configure(self, server: RedisServer, name: str) -> None:
        client = fencedlock.configure(server.url, ttl=5)
        with fencedlock.RLock(name) as token, fencedlock.FairLock(name) as same:
            assert token == same
            assert client.inspect(name).token == int(token)

    def test_the_environment(
        self, server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FENCEDLOCK_URL", server.url)
        with fencedlock.RLock(name):
            assert fencedlock.RLock(name)._recursion_count() == 1


@pytest.mark.parametrize(
    "url",
    [
        "nothing",
        "http://x",
        "",
        "redis://x:port/0",
        "redis://x/0?socket_timeout=soon",
        "localhost:6379",
        "redis://localhost/abc",
        "redis://[",
        "etcd://[]",
    ],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(fencedlock.ConfigurationError):
        fencedlock.connect(url)


@pytest.mark.parametrize("ttl", [0, -1, 0.09, math.inf, math.nan, None, "3", True, 1e9])
def test_wrong_ttls(
    ttl: object, server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match="ttl"):
        fencedlock.connect("redis://localhost", ttl=ttl)  # type: ignore[arg-type]
    client = connect(server.url)
    if ttl is not None:
        with pytest.raises(fencedlock.ConfigurationError, match="ttl"):
            client.RLock(name, ttl=ttl)  # type: ignore[arg-type]
        with client.RLock(name), pytest.raises(fencedlock.ConfigurationError, match="ttl"):
            client.RLock(name).renew(ttl)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["outage_timeout", "socket_timeout"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "1", None])
def test_wrong_seconds(setting: str, value: object) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match=setting):
        fencedlock.connect("redis://localhost", **{setting: value})  # type: ignore[arg-type]


def test_renewal_lengthens_and_shortens(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    with lock:
        lock.renew(ttl=100)
        assert 90 < lock.remaining() <= 100
        assert 90 < lock.info().remaining <= 100
        lock.renew(ttl=2)
        assert 1 < lock.remaining() <= 2
        assert 1 < lock.info().remaining <= 2
        lock.renew()
        assert lock.remaining() <= 2


def test_what_a_thread_must_hold_to_ask(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    for ask in (
        lambda: lock.token,
        lambda: lock.abandoned,
        lock.remaining,
        lock.ensure_held,
        lock.renew,
    ):
        with pytest.raises(fencedlock.NotOwnedError):
            ask()
    assert not lock.lost.is_set()
    with lock:
        event = lock.lost
        lock.ensure_held()
        assert lock.abandoned is False
        assert 0 < lock.remaining() <= 10
    assert not event.is_set()


@pytest.mark.usefixtures("no_default")
def test_threads_that_begin_at_once_share_one_default(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FENCEDLOCK_URL", server.url)
    barrier = threading.Barrier(8)
    clients: list[fencedlock.Client] = []

    def make() -> None:
        barrier.wait()
        clients.append(connecting.default_client())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, clients))) == 1
