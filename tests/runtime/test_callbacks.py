"""Which losses are reported and which are not, and a Condition whose lock was lost."""

from __future__ import annotations

import _thread
import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
import fencedlock.asyncio
from fencedlock.backends.redis.lock import RedisLock
from fencedlock.core.lease import LeaseEvent, LeaseState
from fencedlock.runtime.callbacks import Calls
from fencedlock.runtime.holding import report_lost
from tests.conftest import eventually
from tests.servers import RedisServer


def test_callbacks_of_one_client_come_in_order_on_one_thread(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    told: list[tuple[str, int]] = []
    go = threading.Event()

    def on_lost(lock: fencedlock.RLock, reason: str) -> None:
        go.wait(20)
        told.append((lock.name, threading.get_ident()))
        if len(told) == 3:
            raise RuntimeError("a callback that fails")

    mine = connect(server.url, ttl=10, on_lost=on_lost)
    locks = [mine.RLock(f"{name}/{number}") for number in range(6)]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        assert client.force_release(lock.name) is not None
        with pytest.raises(fencedlock.LockLostError):
            lock.acquire()  # the server's answer shows the loss
    go.set()
    eventually(lambda: len(told) == len(locks))
    assert [each for each, _ in told] == [lock.name for lock in locks]
    assert len({thread for _, thread in told}) == 1
    for lock in locks:
        with pytest.raises(fencedlock.LockLostError):
            lock.release()


def test_a_loss_is_logged_where_no_thread_can_be_started(
    client: fencedlock.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    calls, told = Calls(), threading.Event()

    def start_no_thread(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR, "fencedlock"):
        patched.setattr(_thread, "start_new_thread", start_no_thread)
        calls.add("on_lost", name, "somebody else has it", told.set)
    assert name in caplog.text
    assert "somebody else has it" in caplog.text
    calls.close()


@pytest.mark.parametrize("closes", ["before", "beside", "after"])
def test_closing_beside_a_release_reports_no_loss(
    closes: str,
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    told: list[str] = []
    with caplog.at_level(logging.WARNING, "fencedlock"):
        for number in range(20):
            client = connect(server.url, ttl=10, on_lost=lambda lock, reason: told.append(reason))
            lock = client.RLock(f"{name}/{number}")
            lock.acquire()
            closer = threading.Thread(target=client.close)
            if closes != "after":
                closer.start()
            if closes == "before":
                closer.join()
            try:
                lock.release()
            except fencedlock.NotOwnedError:
                assert closes != "after"
            if closes == "after":
                closer.start()
            closer.join()
            assert not told
            with server.client() as raw:
                assert not raw.exists(f"fencedlock:{{{lock.name}}}")
    assert "lost" not in caplog.text


def test_a_release_that_has_begun_is_done_before_its_client_is_closed(
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    client = connect(server.url, ttl=10)
    lock = client.RLock(name)
    lock.acquire()
    table, closed = client._table, threading.Event()
    backend, release = table.backend, RedisLock.release
    close = backend.close
    closer = threading.Thread(target=client.close)

    def release_beside(bound: RedisLock, *arguments: Any) -> Any:
        closer.start()
        closed.wait(0.5)  # the client is not closed meanwhile
        return release(bound, *arguments)

    def close_and_tell(timeout_seconds: float) -> None:
        close(timeout_seconds)
        closed.set()

    monkeypatch.setattr(backend, "close", close_and_tell)
    monkeypatch.setattr(RedisLock, "release", release_beside)
    lock.release()
    closer.join(20)
    assert closed.is_set()
    with server.client() as raw:
        assert not raw.exists(f"fencedlock:{{{name}}}")


class TestCondition:
    """``Condition.wait`` leaves no waiter behind if its lock was lost or can't be taken again.

    A notify would be spent on such a waiter.
    """

    def test_a_lost_lock(self, client: fencedlock.Client, name: str) -> None:
        condition = threading.Condition(client.RLock(name))  # type: ignore[arg-type]
        with pytest.raises(fencedlock.LockLostError), condition:
            client.force_release(name)
            condition.wait(5)
        self.works(condition)

    def test_a_lock_that_is_lost_with_a_predicate(
        self, client: fencedlock.Client, name: str
    ) -> None:
        condition = threading.Condition(client.RLock(name))  # type: ignore[arg-type]
        with pytest.raises(fencedlock.LockLostError), condition:
            client.force_release(name)
            condition.wait_for(lambda: False, 5)
        self.works(condition)

    def test_a_lock_that_can_not_be_taken_again(
        self, own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
    ) -> None:
        server = own_server()
        client = connect(server.url, outage_timeout=0.3, socket_timeout=0.3)
        condition = threading.Condition(client.RLock("x"))  # type: ignore[arg-type]

        def wait() -> None:
            with condition:
                entered.set()
                condition.wait(1.0)

        entered = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                wait()
            except fencedlock.FencedLockError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert entered.wait(20)
        eventually(lambda: condition._waiters and not client.inspect("x").locked)  # type: ignore[attr-defined]
        server.kill()
        thread.join(20)
        assert len(failed) == 1
        server.start()
        self.works(condition)

    def works(self, condition: threading.Condition) -> None:
        assert not condition._waiters  # type: ignore[attr-defined]
        notified: list[bool] = []

        def wait() -> None:
            with condition:
                notified.append(condition.wait(20))

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: condition._waiters)  # type: ignore[attr-defined]
        with condition:
            condition.notify(1)
        thread.join(20)
        assert notified == [True]


def test_a_loss_is_recorded_when_its_client_is_closed_and_its_handle_is_gone(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client = connect(server.url, ttl=10, on_lost=lambda lock, reason: None)
    kept, lock = client.RLock(name), client.RLock(name)
    lock.acquire()
    (hold,) = kept._settings.resource.holds.values()
    del lock
    gc.collect()
    state = kept._settings.state
    state.closed = True
    report_lost(state, hold, LeaseEvent.NOT_OURS, "it was taken")
    state.closed = False
    assert hold.state is LeaseState.LOST


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("owner", ["thread", "task", "task whose handle is gone"])
def test_a_coroutine_function_of_a_client_is_awaited(
    owner: str,
    fails: bool,
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, Any]] = []

    async def on_lost(lock: Any, reason: str) -> None:
        await asyncio.sleep(0)
        told.append((lock.name, asyncio.get_running_loop()))
        if fails:
            raise ZeroDivisionError

    client = connect(server.url, ttl=1, on_lost=on_lost)
    other = connect(server.url)

    async def main() -> None:
        handle = fencedlock.asyncio.RLock(name, client=client)
        keeps_the_lock_alive = fencedlock.asyncio.RLock(name, client=client)
        await handle.acquire()
        if owner == "task whose handle is gone":
            del handle
        await asyncio.to_thread(other.force_release, name)
        await asyncio.to_thread(eventually, lambda: told)
        assert told == [(name, asyncio.get_running_loop())]
        with pytest.raises(fencedlock.LockLostError):
            await keeps_the_lock_alive.release()

    if owner == "thread":
        lock = client.RLock(name)
        lock.acquire()
        other.force_release(name)
        eventually(lambda: told)
        with pytest.raises(fencedlock.LockLostError):
            lock.release()
    else:
        asyncio.run(main())
    if fails:
        eventually(lambda: "ZeroDivisionError" in caplog.text)
