"""All ways other than release() to end a hold or a wait, and what each leaves on the server."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.clock import Deadline
from fencedlock.runtime.heartbeat import Heartbeat
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer

TTL_SECONDS = 0.6


@pytest.fixture(params=["redis", "etcd"])
def server(request: pytest.FixtureRequest, server: LockServer) -> LockServer:
    """A lock server of each family."""
    return server if request.param == "redis" else request.getfixturevalue("etcd_server")


def test_a_thread_that_ends_while_holding_loses_the_lock_after_its_lease(
    server: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    lost: list[tuple[str, str]] = []
    client = connect(
        server.url, ttl=TTL_SECONDS, on_lost=lambda lock, reason: lost.append((lock.name, reason))
    )
    lock = client.RLock(name)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    assert lock.locked()
    with client.FairLock(name):
        assert lock.abandoned is True
    eventually(lambda: lost == [(name, "its thread ended without a release")])
    assert server.leftovers(name) == set()


def test_a_thread_outside_threading_that_ends_while_holding_is_noticed_too(
    server: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    import _thread

    client = connect(server.url, ttl=TTL_SECONDS)
    lock = client.RLock(name)
    _thread.start_new_thread(lock.acquire, ())
    eventually(lambda: lock.locked())
    assert lock.acquire(timeout=20) is True
    lock.release()


def test_the_last_handle_of_a_held_lock_releases_it_when_collected(
    server: LockServer, client: fencedlock.Client, name: str
) -> None:
    handle, twin = client.RLock(name), client.FairLock(name)
    handle.acquire()
    del handle
    gc.collect()
    assert twin._is_owned()  # one handle is left
    with pytest.warns(ResourceWarning, match="last handle of held lock"):
        del twin
        gc.collect()
    eventually(lambda: server.leftovers(name) == set())
    assert not client.RLock(name)._is_owned()


def test_a_handle_is_free_of_cycles(client: fencedlock.Client, name: str) -> None:
    import weakref

    gc.disable()
    try:
        lock = client.RLock(name)
        with lock, lock:
            pass
        dead = weakref.ref(lock)
        del lock
        assert dead() is None
    finally:
        gc.enable()


SCRIPT = """
import sys, threading, fencedlock
client = fencedlock.connect(sys.argv[1], ttl=30)
held, awaited = client.RLock(sys.argv[2]), client.FairLock(sys.argv[3])
held.acquire()
threading.Thread(target=awaited.acquire, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[4] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("end", ["return", "raise"])
def test_an_interpreter_that_exits_releases_everything(
    server: LockServer, client: fencedlock.Client, name: str, end: str
) -> None:
    awaited = f"{name}/awaited"
    with client.FairLock(awaited):
        command = [sys.executable, "-W", "error", "-c", SCRIPT, server.url, name, awaited, end]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert client.inspect(name).locked
            eventually(lambda: client.inspect(awaited).waiters)
            _, errors = process.communicate("go\n", timeout=20)
        assert "Traceback" not in errors, errors
        assert server.leftovers(name) == set()
        assert client.inspect(awaited).waiters == ()


def test_a_child_of_multiprocessing_releases_everything_when_it_ends(
    server: LockServer, client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with pytest.MonkeyPatch.context():
        child = multiprocessing.get_context("fork").Process(target=lock.acquire)
        child.start()
        child.join(20)
    assert child.exitcode == 0
    assert server.leftovers(name) == set()


def test_a_forked_child_holds_nothing_and_can_lock(
    server: LockServer, client: fencedlock.Client, name: str
) -> None:
    held, free = client.RLock(name), client.FairLock(f"{name}/free")
    with held as token, free:
        free.release()
        waiting = threading.Thread(target=held.acquire, kwargs={"timeout": 1})
        waiting.start()
        eventually(lambda: client.inspect(name).waiters)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _in_child(held, free)
            finally:
                os._exit(status)
        waiting.join()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert held.token == token
        held.ensure_held()
        assert client.inspect(name).token == int(token)
        free.acquire()
    assert server.leftovers(name) == set()


def _in_child(held: fencedlock.RLock, free: fencedlock.RLock) -> int:
    try:
        held.ensure_held()
    except fencedlock.NotOwnedError:
        pass
    else:
        return 2
    if held.acquire(False):
        return 3
    if not free.acquire(timeout=10):
        return 4
    free.release()
    return 0


def test_ctrl_c_while_waiting_leaves_nothing_behind(
    server: LockServer,
    client: fencedlock.Client,
    contender: Callable[..., Contender],
    ctrl_c: Callable[[], None],
    name: str,
) -> None:
    other = contender("process", client)
    other.ask("acquire", name)
    lock = client.FairLock(name)

    def interrupt() -> None:
        # It waits once the answer has come: a request that is cut short is remembered for long.
        claims = client._table.claims
        eventually(lambda: any(claim.issued is not None for claim in list(claims.values())))
        ctrl_c()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    thread.join()
    assert client.inspect(name).waiters == ()
    assert not lock._is_owned()
    other.ask("release", name)
    eventually(lambda: server.leftovers(name) == set())


def test_cancel_ends_a_wait_at_once(
    server: LockServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    other = contender("process", client)
    other.ask("acquire", name)
    cancellation = fencedlock.Cancellation()
    lock = client.FairLock(name)
    cancelled_at: list[float] = []

    def cancel() -> None:
        eventually(lambda: client.inspect(name).waiters)
        cancelled_at.append(time.monotonic())
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(fencedlock.AcquireCancelledError) as caught:
        lock.acquire(cancel=cancellation)
    assert time.monotonic() - cancelled_at[0] < 3
    assert caught.value.lock == name
    thread.join()
    assert client.inspect(name).waiters == ()
    with pytest.raises(fencedlock.AcquireCancelledError):
        lock.acquire(cancel=cancellation)  # the Cancellation stays cancelled
    other.ask("release", name)
    assert lock.acquire(cancel=fencedlock.Cancellation()) is True
    lock.release()
    assert server.leftovers(name) == set()


def test_close_releases_holds_and_ends_waiting(
    server: LockServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    leaving = connect(server.url)
    held, awaited = leaving.RLock(name), leaving.FairLock(f"{name}/awaited")
    held.acquire()
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            awaited.acquire()
        except fencedlock.AcquireCancelledError as error:
            outcome.append(error)

    with client.RLock(awaited.name):
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: client.inspect(awaited.name).waiters)
        leaving.close()
        thread.join(10)
        assert outcome
        assert client.inspect(awaited.name).waiters == ()
    assert server.leftovers(name) == set()
    leaving.close()
    with pytest.raises(fencedlock.NotOwnedError):
        held.release()
    for use in (held.acquire, held.info, lambda: leaving.RLock("x"), lambda: list(leaving.locks())):
        with pytest.raises(fencedlock.ConfigurationError, match="closed"):
            use()
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("fencedlock") and thread in _threads_of(leaving)
    ]


def _threads_of(client: fencedlock.Client) -> list[threading.Thread | None]:
    return [client._table.heartbeat._worker._thread]


@pytest.mark.parametrize("when", ["acquire", "begin"])
def test_closing_ends_an_acquisition_whose_grant_is_on_its_way(
    when: str,
    server: LockServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grant has just been received, or has just been registered as a hold."""
    leaving = connect(server.url)
    leaving._table.listen(5)
    lock = leaving.RLock(name)
    where = type(leaving._table.resource(name).bound) if when == "acquire" else Heartbeat
    original = getattr(where, when)

    def overtaken(*arguments: Any, **options: Any) -> object:
        answer = original(*arguments, **options)
        claims, holds = leaving._table.claims, leaving._table.heartbeat.holds()
        assert len(claims) + len(holds) == 1, (
            "who closes would end the claim while the hold is believed in"
        )
        leaving.close()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(where, when, overtaken)
        with pytest.raises(fencedlock.AcquireCancelledError, match="closed"):
            lock.acquire()
    assert not lock._is_owned()
    with client.RLock(name):
        pass


class _InterruptedOnce(dict[Any, Any]):
    """A dict in which Ctrl-C comes just after the first entry was taken out."""

    interrupted = False

    def pop(self, *arguments: Any) -> Any:
        popped = super().pop(*arguments)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return popped


def test_ctrl_c_in_a_renewal_leaves_no_hold_without_its_beats(
    client: fencedlock.Client, name: str
) -> None:
    """A renewal also plans the beats of earlier holds, of this thread and of others."""
    locks = [client.RLock(f"{name}/{number}") for number in range(2)]
    heartbeat = client._table.heartbeat
    with heartbeat._mutex:  # so that the heartbeat's thread has moved none of them yet
        for lock in locks:
            lock.acquire()
        newcomers = _InterruptedOnce(heartbeat._schedules.newcomers)
        heartbeat._schedules.newcomers = newcomers
        with pytest.raises(KeyboardInterrupt):
            locks[0].renew()
        assert {hold.bound.name for hold in heartbeat.holds()} == {lock.name for lock in locks}
    for lock in locks:
        lock.release()
    assert heartbeat.holds() == []


def test_ctrl_c_in_the_middle_of_a_release_lets_nobody_believe_in_the_lock(
    server: LockServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, stranger = client.RLock(name), connect(server.url).RLock(name)
    bound = client._table.resource(name).bound
    lock.acquire()
    release = type(bound).release

    def interrupted(*arguments: Any, **options: Any) -> object:
        monkeypatch.setattr(type(bound), "release", release)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(bound), "release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.release()
    assert not lock._is_owned()
    assert stranger.acquire(timeout=5)  # the background has released it
    assert lock.acquire(False) is False
    stranger.release()
    with lock:
        lock.ensure_held()


def test_ctrl_c_on_the_way_into_the_body_releases(
    client: fencedlock.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = client.RLock(name)
    with monkeypatch.context() as patch:
        patch.setattr(fencedlock.RLock, "_entered", _interrupt)
        with pytest.raises(KeyboardInterrupt), lock:
            pass
    assert not lock._is_owned()
    assert not lock.locked()


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_client_that_is_dropped_ends_its_threads(server: LockServer, name: str) -> None:
    dropped = fencedlock.connect(server.url)
    with dropped.RLock(name):
        heartbeat = dropped._table.heartbeat
        assert heartbeat.started
    del dropped
    gc.collect()
    heartbeat.wait(Deadline(10))
    assert heartbeat._worker.ended.is_set()


def test_locks_that_come_by_pickle_share_one_client(server: LockServer, name: str) -> None:
    client = fencedlock.connect(server.url, ttl=9)
    packed = pickle.dumps(client.RLock(name))
    client.close()
    copies = [pickle.loads(packed) for _ in range(5)]
    assert len({id(copy._client) for copy in copies}) == 1
    again = copies[0]._client
    del copies
    gc.collect()
    assert pickle.loads(packed)._client is again
    again.close()


def test_a_forced_release_names_its_token(client: fencedlock.Client, name: str) -> None:
    with client.RLock(name) as token:
        bound = client._table.backend.bind_lock(name)
        assert bound.force_release(int(token) - 1, 5) is False
        assert client.inspect(name).token == int(token)


class _LocksWhenCollected:
    def __init__(self, lock: fencedlock.RLock) -> None:
        self.lock = lock

    def __del__(self) -> None:
        if self.lock.acquire(timeout=5):
            self.lock.release()


def test_a_destructor_that_locks_may_run_in_the_middle_of_anything(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(f"{name}/destructor")
    table = client._table
    with table.mutex, table.heartbeat._mutex:
        doomed = _LocksWhenCollected(lock)
        del doomed
    assert not lock._is_owned()
