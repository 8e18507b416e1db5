"""Servers that are down, frozen, restarted, full or misconfigured."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.clock import now_seconds
from fencedlock.core.lease import NOT_OURS_REASON
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import LOSE, Proxy
from tests.servers import LockServer, RedisServer, free_port


@pytest.fixture(params=["refusing", "frozen", "silent"])
def dead_url(
    request: pytest.FixtureRequest,
    family: str,
    new_server: Callable[[], LockServer],
    proxy: Callable[[LockServer], Any],
) -> str:
    """The URL of a server that refuses connections, is frozen, or is behind a silent network."""
    if request.param == "refusing":
        return f"{family}://127.0.0.1:{free_port()}"
    server = new_server()
    if request.param == "frozen":
        server.freeze()
        request.addfinalizer(server.thaw)
        return server.url
    wire = proxy(server)
    wire.rule = lambda request: LOSE
    return str(wire.url)


class TestDeadServer:
    def test_a_try_raises(self, dead_url: str, connect: Callable[..., fencedlock.Client]) -> None:
        lock = connect(dead_url, socket_timeout=0.3).RLock("x")
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError) as caught:
            lock.acquire(False)
        assert time.monotonic() - begun < 5
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.lock == "x"
        assert not lock._is_owned()

    def test_a_timeout_is_kept(
        self, dead_url: str, connect: Callable[..., fencedlock.Client]
    ) -> None:
        lock = connect(dead_url).FairLock("x")
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.acquire(timeout=0.6)
        assert 0.5 <= time.monotonic() - begun < 0.6 + 2

    def test_without_a_timeout_the_outage_timeout_is_kept(
        self, dead_url: str, connect: Callable[..., fencedlock.Client]
    ) -> None:
        lock = connect(dead_url, outage_timeout=0.6, socket_timeout=0.2).FairLock("x")
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.acquire()
        assert 0.5 <= time.monotonic() - begun < 3

    def test_cancel_ends_the_backoff(
        self, dead_url: str, connect: Callable[..., fencedlock.Client]
    ) -> None:
        lock = connect(dead_url, socket_timeout=0.2).RLock("x")
        cancellation = fencedlock.Cancellation()
        threading.Timer(0.3, cancellation.cancel).start()
        begun = time.monotonic()
        with pytest.raises(fencedlock.AcquireCancelledError):
            lock.acquire(cancel=cancellation)
        assert time.monotonic() - begun < 5


def test_acquire_waits_for_a_server_that_comes_back(
    new_server: Callable[[], LockServer], connect: Callable[..., fencedlock.Client]
) -> None:
    server = new_server()
    client = connect(server.url)
    server.kill()
    back = threading.Timer(0.5, server.start)
    back.start()
    with client.RLock("x") as token:
        assert token
    back.join()


def test_an_idle_connection_that_the_server_closed_is_replaced_at_once(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    server = own_server()
    lock = connect(server.url).RLock("x")
    with lock:
        pass
    server.kill()
    server.start()
    assert lock.acquire(False) is True
    lock.release()


def test_a_restart_with_its_data_within_the_lease_costs_nobody_the_lock(
    own_server: Callable[..., RedisServer],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    server = own_server(appendonly="yes", appendfsync="always")
    client = connect(server.url, ttl=3, socket_timeout=0.5)
    lock = client.RLock("x")
    waiter = contender("thread", connect(server.url, ttl=3, socket_timeout=0.5))
    with lock as token, lock:
        waiter.tell("acquire", "x")
        eventually(lambda: client.inspect("x").waiters)
        server.kill()
        server.start()
        until = time.monotonic() + 4
        while time.monotonic() < until:  # longer than the lease, so beats have renewed it
            lock.ensure_held()
            assert not waiter.answered(0.1)
        assert lock.info().token == int(token)
        assert lock.info().count == 2
    assert waiter.answer() is True


def test_a_restart_without_its_data_costs_the_lock_but_no_fence(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    lost: list[str] = []
    server = own_server()
    client = connect(server.url, ttl=1, on_lost=lambda lock, reason: lost.append(reason))
    lock = client.RLock("x")
    lock.acquire()
    token = lock.token
    server.kill()
    server.start()
    assert lock.lost.wait(10)
    eventually(lambda: lost == [NOT_OURS_REASON])
    assert lock.remaining() == 0
    with pytest.raises(fencedlock.LockLostError):
        lock.ensure_held()
    with pytest.raises(fencedlock.LockLostError):
        lock.release()
    with lock as later:
        assert later > token


class TestDownWhileHolding:
    def test_the_lease_is_unknown_then_lost_and_the_body_is_done_first(
        self, new_server: Callable[[], LockServer], connect: Callable[..., fencedlock.Client]
    ) -> None:
        calls: list[tuple[str, str, str]] = []
        server = new_server()
        client = connect(server.url, ttl=1.2)
        lock = client.RLock(
            "x",
            on_lost=lambda lock, reason: calls.append(
                (lock.name, reason, threading.current_thread().name)
            ),
        )
        done = False
        with pytest.raises(fencedlock.LockLostError), lock:
            event = lock.lost
            server.kill()
            lock.ensure_held()  # a lost packet is not a lost lock
            with lock:  # this thread can acquire the lock again meanwhile
                lock.ensure_held()
            assert event.wait(10)
            done = True
        assert done
        eventually(
            lambda: (
                calls
                == [("x", "its lease ended before a beat was answered", "fencedlock-callbacks")]
            )
        )

    def test_the_error_of_the_body_is_not_replaced(
        self, new_server: Callable[[], LockServer], connect: Callable[..., fencedlock.Client]
    ) -> None:
        server = new_server()
        lock = connect(server.url, ttl=0.5).RLock("x")
        with pytest.raises(ZeroDivisionError) as caught, lock:
            server.kill()
            lock.lost.wait(10)
            _ = 1 / 0
        assert "was lost while held" in caught.value.__notes__[0]
        assert not lock._is_owned()

    def test_a_blip_is_survived(
        self,
        server: RedisServer,
        connect: Callable[..., fencedlock.Client],
        proxy: Callable[..., Proxy],
        name: str,
    ) -> None:
        wire = proxy(server)
        lock = connect(wire.url, ttl=1.5).RLock(name)
        with lock:
            wire.cut()
            wire.rule = lambda request: LOSE
            before = len(wire.requests)
            wire.wait_for(lambda: len(wire.requests) > before)
            wire.rule = lambda request: None
            wire.cut()
            until = time.monotonic() + 2
            while time.monotonic() < until:
                lock.ensure_held()
                time.sleep(0.05)

    def test_release_returns_and_the_background_frees_the_lock(
        self,
        server: RedisServer,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        proxy: Callable[..., Proxy],
        caplog: pytest.LogCaptureFixture,
        name: str,
    ) -> None:
        wire = proxy(server)
        lock = connect(wire.url, ttl=10, socket_timeout=0.2).RLock(name)
        with caplog.at_level(logging.WARNING, "fencedlock"):
            with lock:
                wire.rule = lambda request: LOSE
        assert "had no answer; trying again" in caplog.text
        assert client.inspect(name).locked
        wire.rule = lambda request: None
        eventually(lambda: not client.inspect(name).locked, 5)


class TestRefusals:
    def test_at_maxmemory_renewal_and_release_work_and_acquire_says_why(
        self,
        own_server: Callable[..., RedisServer],
        connect: Callable[..., fencedlock.Client],
        contender: Callable[..., Contender],
    ) -> None:
        server = own_server(maxmemory_policy="noeviction")
        client = connect(server.url, ttl=1)
        lock, waiter = client.FairLock("x"), contender("process", client)
        with lock as token:
            waiter.tell("acquire", "x")
            eventually(lambda: client.inspect("x").waiters)
            with server.client() as raw:
                raw.config_set("maxmemory", 1)
                with pytest.raises(fencedlock.BackendError, match="maxmemory") as caught:
                    client.RLock("another").acquire()
                assert not isinstance(caught.value, fencedlock.BackendUnavailableError)
                assert not raw.exists("fencedlock:{another}")
            lock.renew()
            with lock:
                assert lock.info().count == 2
            until = time.monotonic() + 2
            while time.monotonic() < until:
                lock.ensure_held()
                time.sleep(0.05)
            assert lock.info().token == int(token)
        assert waiter.answer() is True  # handed over although nothing may be written
        waiter.ask("release", "x")
        assert not client.inspect("x").locked

    def test_a_read_only_replica(
        self, own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
    ) -> None:
        master, replica = own_server(), own_server()
        with replica.client() as raw:
            raw.replicaof("127.0.0.1", str(master.port))
            eventually(lambda: raw.info("replication").get("master_link_status") == "up")
        with pytest.raises(fencedlock.BackendError, match=r"(?i)read.?only"):
            connect(replica.url, outage_timeout=0.5).RLock("x").acquire()

    def test_a_missing_permission(
        self, own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
    ) -> None:
        server = own_server()
        with server.client() as raw:
            raw.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-hset")
            raw.execute_command(
                "ACL", "SETUSER", "deaf", "on", ">pw", "~*", "resetchannels", "+@all"
            )
            with pytest.raises(fencedlock.BackendMisconfiguredError):
                connect(f"redis://weak:pw@127.0.0.1:{server.port}/0").RLock("x").acquire()
            assert not raw.exists("fencedlock:{x}")
        with pytest.raises(fencedlock.BackendMisconfiguredError, match="user"):
            connect(f"redis://weak:wrong@127.0.0.1:{server.port}/0").RLock("x").acquire()
        with server.client() as raw:
            raw.execute_command("ACL", "SETUSER", "default", "resetpass", ">pw")
        with pytest.raises(fencedlock.BackendMisconfiguredError, match="wants a password"):
            connect(server.url).RLock("x").acquire()
        # Without the right to channels there are no doorbells. Waiters learn of grants by beats.
        deaf = connect(f"redis://deaf:pw@127.0.0.1:{server.port}/0", ttl=1)
        first, second = deaf.RLock("y"), deaf.FairLock("y")
        first.acquire()
        outcome: list[bool] = []

        def visit() -> None:
            outcome.append(second.acquire(timeout=20))
            second.release()

        thread = threading.Thread(target=visit)
        thread.start()
        eventually(lambda: first.info().waiters)
        first.release()
        thread.join()
        assert outcome == [True]

    @pytest.mark.parametrize("suffix", ["", ":queue", ":waiters", ":fence", ":withdrawn"])
    def test_a_key_of_the_wrong_type(
        self, server: RedisServer, client: fencedlock.Client, suffix: str, name: str
    ) -> None:
        key = f"fencedlock:{{{name}}}{suffix}"
        lock = client.RLock(name)
        with server.client() as raw:
            raw.set(key, "somebody else's")
            try:
                lock.acquire(timeout=1)
            except fencedlock.BackendError as error:
                assert "WRONGTYPE" in str(error)
                assert not isinstance(error, fencedlock.BackendUnavailableError)
                assert not lock._is_owned()
                if suffix:
                    assert not raw.exists(f"fencedlock:{{{name}}}")
            else:
                lock.release()
            assert raw.get(key) == b"somebody else's"
            raw.delete(key)

    def test_a_key_that_is_no_text_is_no_lock(
        self, server: RedisServer, client: fencedlock.Client, name: str
    ) -> None:
        key = b"fencedlock:{" + name.encode() + b"\xff}"
        with server.client() as raw, client.RLock(name):
            raw.set(key, "somebody else's", px=10_000)
            assert [info.name for info in client.locks(name)] == [name]
            raw.delete(key)

    def test_scripts_are_loaded_again_after_a_flush(
        self, server: RedisServer, client: fencedlock.Client, name: str
    ) -> None:
        lock = client.RLock(name)
        with server.client() as raw:
            raw.script_flush()
            with lock:
                raw.script_flush()
                with lock:
                    raw.script_flush()


def test_dangerous_settings_are_logged_once(
    own_server: Callable[..., RedisServer],
    connect: Callable[..., fencedlock.Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = own_server(maxmemory_policy="allkeys-lru")
    client = connect(server.url)
    with caplog.at_level(logging.WARNING, "fencedlock"):
        with client.RLock("x"), client.RLock("y"):
            eventually(lambda: "appendonly" in caplog.text)
    assert caplog.text.count("noeviction") == 1
    assert caplog.text.count("appendonly") == 1


@pytest.mark.parametrize("released", ["in time", "too late"])
def test_a_lease_that_was_made_shorter_without_an_answer_is_undone_for_as_long_as_the_old_one_lasts(
    released: str,
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[..., Proxy],
    name: str,
) -> None:
    wire = proxy(server)
    lock = connect(wire.url, ttl=30, socket_timeout=0.1).RLock(name)
    lock.acquire()
    wire.rule = lambda request: LOSE
    with pytest.raises(fencedlock.BackendUnavailableError):
        lock.renew(0.7)
    if released == "too late":
        assert lock.lost.wait(20)
        with pytest.raises(fencedlock.LockLostError):
            lock.release()
    else:
        lock.release()
        eventually(lambda: lock._settings.latest.deadline < now_seconds())  # type: ignore[union-attr]
    assert client.inspect(name).locked
    wire.rule = lambda request: None
    eventually(lambda: not client.inspect(name).locked, 10)
