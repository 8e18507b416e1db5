"""The texts that people read in the log, in errors and in LockInfo."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

import fencedlock
from fencedlock.core import waiting
from tests.conftest import eventually
from tests.servers import LockServer


@pytest.fixture(params=["redis", "etcd"])
def server(request: pytest.FixtureRequest, server: LockServer) -> LockServer:
    """A lock server of each family."""
    return server if request.param == "redis" else request.getfixturevalue("etcd_server")


def test_a_release_by_another_thread_names_the_thread_that_holds(
    client: fencedlock.Client, name: str
) -> None:
    lock, held, done = client.RLock(name), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold, name="worker 7")
    thread.start()
    assert held.wait(20)
    with pytest.raises(
        fencedlock.NotOwnedError,
        match=r"cannot release un-acquired lock.*thread 'worker 7' of this process holds it",
    ):
        lock.release()
    done.set()
    thread.join()
    with pytest.raises(fencedlock.NotOwnedError) as caught:
        lock.release()
    assert "holds it" not in str(caught.value)


def test_a_long_wait_names_the_holder(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    server: LockServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting, "SLOW_SECONDS", 0.05)
    other = connect(server.url)

    def visit() -> None:
        with other.RLock(name):
            pass

    with client.RLock(name):
        holder = client.inspect(name).holder
        waiter = threading.Thread(target=visit)
        waiter.start()
        eventually(
            lambda: [record for record in caplog.records if "waits for lock" in record.getMessage()]
        )
    waiter.join()
    (record,) = [record for record in caplog.records if "waits for lock" in record.getMessage()]
    assert f"/{waiter.native_id} " in record.getMessage()
    assert record.getMessage().startswith("fencedlock: ")
    assert repr(name) in record.getMessage()
    assert str(holder) in record.getMessage()


def test_an_outage_has_one_line_at_its_beginning_and_one_at_its_end(
    new_server: Callable[[], LockServer],
    connect: Callable[..., fencedlock.Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = new_server()
    client = connect(server.url, ttl=30)
    lock = client.RLock("x")
    with lock:
        pass
    server.kill()
    for _ in range(5):
        with pytest.raises(fencedlock.BackendUnavailableError, match=r"lock 'x': .*127\.0\.0\.1"):
            lock.acquire(timeout=0.05)
    server.start()
    assert lock.acquire(timeout=20)
    lock.release()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in lines if "Locks that are held stay so" in line]) == 1
    assert len([line for line in lines if "answers again" in line]) == 1


def test_a_forced_release_is_logged_on_both_sides(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    server: LockServer,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    operator = connect(server.url)
    with (
        pytest.raises(fencedlock.LockLostError, match="somebody called force_release"),
        client.RLock(name) as token,
    ):
        operator.force_release(name)
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"lock {name!r} was taken from" in line and str(token) in line for line in lines)
    assert any(f"lock {name!r} was lost" in line and "force_release" in line for line in lines)


def test_the_beginning_of_a_hold_is_told(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    assert client.inspect(name).held_since is None
    before = time.time()
    with lock:
        since = lock.info().held_since
        assert since is not None
        assert before - 1 < since < time.time() + 1
        with lock:
            lock.renew()
        assert lock.info().held_since == since


def test_every_message_of_the_log_begins_with_the_library_s_name() -> None:
    import re
    from pathlib import Path

    for path in Path(fencedlock.__file__).parent.rglob("*.py"):
        for call in re.finditer(
            r"logger\.(?:debug|info|warning|error|exception)\(\s*(?:#[^\n]*\n\s*)?f?\"([^\"]*)",
            path.read_text(),
        ):
            assert call[1].startswith("fencedlock: "), f"{path.name}: {call[1]}"
