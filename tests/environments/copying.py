"""Programs that copy themselves with libc's fork(), so that no hook of Python is run.

uWSGI forks its workers in this way.

``python -m tests.environments.copying SCENARIO URL NAME ...``
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import linecache
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

import fencedlock
from fencedlock import connecting
from tests.conftest import eventually
from tests.forks import FORKS, fork_in_c, fork_in_python, libc, settle

PATIENCE_SECONDS = 45
TIMES = 30
_CLONE_NEWPID = 0x20000000


class Copy:
    """A copy of this process, made by ``fork``.

    It runs ``body``, and then ends as an interpreter ends.
    """

    def __init__(self, body: Callable[[Copy], object], fork: Callable[[], int] = fork_in_c) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.original = os.getpid()
        self.pid = fork()
        if self.pid == 0:
            self._be(body)
        self._theirs.close()
        self._ours.settimeout(PATIENCE_SECONDS)

    def _be(self, body: Callable[[Copy], object]) -> None:
        signal.alarm(PATIENCE_SECONDS)
        self._ours.close()
        self._ours = self._theirs
        self._ours.settimeout(PATIENCE_SECONDS)
        finish(lambda: body(self))

    def say(self, words: object) -> None:
        self._ours.send(str(words).encode())

    def hear(self) -> str:
        return self._ours.recv(4096).decode()

    def end(self, what: str = "") -> None:
        """Wait until the copy ends, and assert that it succeeded."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status == 0, f"the copy ended with {status} {what}"
        self._ours.close()


def finish(body: Callable[[], object]) -> None:
    """Run ``body``, and end this process as an interpreter ends.

    The exit status is 1 if ``body`` or an exit handler raises an exception.
    """
    status = 1
    try:
        body()
        atexit._run_exitfuncs()
        gc.collect()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def raises(kind: type[BaseException], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"it did not raise {kind.__name__}")


def count_up(lock: fencedlock.RLock, counter: Path, times: int = TIMES) -> None:
    for _ in range(times):
        with lock:
            counter.write_text(str(int(counter.read_text() or "0") + 1))


# --- a client that was made before the copy, but not used


def unused(url: str, name: str, counter: str, cls: str) -> None:
    """Three copies and their original increase one counter together."""
    client = fencedlock.connect(url, ttl=30)
    lock, path = getattr(client, cls)(name), Path(counter)
    path.write_text("0")

    def work(copy: Copy) -> None:
        copy.hear()
        count_up(lock, path)
        copy.say(client.id)

    copies = [Copy(work) for _ in range(3)]
    for copy in copies:
        copy.say("go")
    count_up(lock, path)
    ids = {client.id, *(copy.hear() for copy in copies)}
    for copy in copies:
        copy.end()
    assert len(ids) == 4, ids
    assert path.read_text() == str(4 * TIMES)


def unused_generations(url: str, name: str) -> None:
    """A copy of a copy is a client of its own too."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)

    def try_once(copy: Copy) -> None:
        copy.hear()
        copy.say(f"{client.id} {lock.acquire(False)}")

    def child(copy: Copy) -> None:
        copy.hear()
        below = Copy(try_once)
        with lock:
            below.say("go")
            copy.say(below.hear())
            below.end()
        copy.say(client.id)

    copy = Copy(child)
    copy.say("go")
    third, got = copy.hear().split()
    second = copy.hear()
    copy.end()
    with lock:
        assert got == "False"
        assert len({client.id, second, third}) == 3


# --- a client that was used


def used(url: str, name: str, counter: str) -> None:
    """The connection, the heartbeat's thread and the places in queues belong to the original.

    Each copy gets its own.
    """
    client = fencedlock.connect(url, ttl=1)
    lock, path = client.FairLock(name), Path(counter)
    path.write_text("0")
    with lock:
        eventually(lambda: client._table.heartbeat._worker.running)

    def work(copy: Copy) -> None:
        own = client.RLock(f"{name}/{os.getpid()}")
        with own:
            before = own._owned().deadline
            copy.hear()
            count_up(lock, path)
            # The copy's own heartbeat has renewed the lease.
            eventually(lambda: own._owned().deadline > before)
        copy.say(client.id)

    copies = [Copy(work) for _ in range(3)]
    for copy in copies:
        copy.say("go")
    count_up(lock, path)
    ids = {client.id, *(copy.hear() for copy in copies)}
    for copy in copies:
        copy.end()
    assert len(ids) == 4, ids
    assert path.read_text() == str(4 * TIMES)
    with lock:  # on the inherited connection, the server still answers only the original
        assert client.inspect(name).token == int(lock.token)


def generations(url: str, name: str) -> None:
    client = fencedlock.connect(url, ttl=30)
    locks = [client.RLock(f"{name}/{generation}") for generation in range(3)]

    def owned() -> list[bool]:
        return [lock._is_owned() for lock in locks]

    def grandchild(copy: Copy) -> None:
        assert owned() == [False, False, False]
        assert [lock.acquire(False) for lock in locks] == [False, False, True]
        copy.say(client.id)

    def child(copy: Copy) -> None:
        assert not locks[0].acquire(False)
        with locks[1], locks[1]:
            assert owned() == [False, True, False]
            third = Copy(grandchild)
            copy.say(third.hear())
            third.end()
            assert owned() == [False, True, False]
            assert [client.inspect(lock.name).locked for lock in locks] == [True, True, False], (
                "its exit releases what it holds itself"
            )
        copy.say(client.id)

    with locks[0] as token:
        second = Copy(child)
        ids = {client.id, second.hear(), second.hear()}
        second.end()
        assert len(ids) == 3
        assert client.inspect(locks[0].name).token == int(token)
        locks[0].ensure_held()


# --- a client that holds


class World:
    """The objects that a copy inherits. Nothing else refers to them, so a copy can drop them."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.client = fencedlock.connect(url, ttl=30)
        self.original_id = self.client.id
        self.held = self.client.FairLock(name)
        self.other = self.client.RLock(f"{name}/other")
        self.looking = self.client.locks(name)
        """An iteration that the original has begun and that a copy continues."""

    def enter_other(self) -> None:
        with self.other, self.other as token:
            self.other.ensure_held()
            self.other.renew(5)
            assert self.client.inspect(self.other.name).token == int(token)

    def drop(self) -> None:
        del self.client, self.held, self.other, self.looking
        gc.collect()

    def in_a_thread(self) -> None:
        got: list[bool] = []
        thread = threading.Thread(
            target=lambda: got.extend([self.held.acquire(False), self.other.acquire(False)])
        )
        thread.start()
        thread.join()
        assert got == [False, True]

    def close(self) -> None:
        self.client.close()
        raises(fencedlock.ConfigurationError, self.held.acquire)

    def expect_another_id(self) -> None:
        assert self.client.id != self.original_id

    def expect_locked(self) -> None:
        assert self.held.locked()

    def inspect(self) -> None:
        info = self.client.inspect(self.name)
        assert info.locked
        assert info.owner is not None
        assert info.owner.startswith(self.original_id)

    def go_on_looking(self) -> None:
        assert [info.name for info in self.looking] == []

    def look(self) -> None:
        assert self.name in [info.name for info in self.client.locks(self.name)]

    def pickle(self) -> None:
        assert not pickle.loads(pickle.dumps(self.held))._is_owned()

    def wait(self) -> None:
        assert not self.held.acquire(timeout=0.1)
        assert self.client.inspect(self.name).waiters == ()

    def wait_as_condition(self) -> None:
        raises(RuntimeError, lambda: threading.Condition(self.held).wait(0.1))  # type: ignore[arg-type]

    def expect_not_owned(self) -> None:
        assert not self.held._is_owned()

    def expect_free_repr(self) -> None:
        assert "unlocked" in repr(self.held)

    def expect_lost(self) -> None:
        assert self.held.lost.is_set()

    def try_once(self) -> None:
        assert not self.held.acquire(False)

    def raise_floor(self) -> None:
        self.client.raise_floor(fencedlock.FencingToken(self.other.name, 1))

    def ping(self) -> None:
        assert self.client.ping() > 0

    def reopen(self) -> None:
        assert connecting.connect_again(*self.client.__reduce__()[1]) is self.client


def _not_owned(call: Callable[[World], object]) -> Callable[[World], None]:
    return lambda world: raises(fencedlock.NotOwnedError, lambda: call(world))


FIRST_ACTS: dict[str, Callable[[World], object]] = {
    "exit": lambda _: None,
    "id": World.expect_another_id,
    "ping": World.ping,
    "is_owned": World.expect_not_owned,
    "repr": World.expect_free_repr,
    "locked": World.expect_locked,
    "inspect": World.inspect,
    "locks": World.look,
    "locks, continued": World.go_on_looking,
    "acquire(False)": World.try_once,
    "acquire(timeout)": World.wait,
    "acquire another": World.enter_other,
    "acquire in a thread": World.in_a_thread,
    "release": _not_owned(lambda world: world.held.release()),
    "token": _not_owned(lambda world: world.held.token),
    "abandoned": _not_owned(lambda world: world.held.abandoned),
    "remaining": _not_owned(lambda world: world.held.remaining()),
    "ensure_held": _not_owned(lambda world: world.held.ensure_held()),
    "renew": _not_owned(lambda world: world.held.renew()),
    "lost": World.expect_lost,
    "condition": World.wait_as_condition,
    "pickle": World.pickle,
    "connect again": World.reopen,
    "raise_floor": World.raise_floor,
    "close": World.close,
    "drop": World.drop,
}
"""The first acts of a copy. In each of them, the copy has to notice that it is one."""


def holding(url: str, name: str) -> None:
    """The original holds a lock twice.

    A copy is not an owner, whatever it does first, and its end takes nothing from the original.
    """
    world = World(url, name)
    with world.held as token, world.held:
        for act, do in FIRST_ACTS.items():
            world.looking = world.client.locks(name)
            assert next(world.looking).name == name
            copy = Copy(lambda _, do=do: do(world))  # type: ignore[misc]
            copy.end(act)
            assert world.held._recursion_count() == 2
            world.held.ensure_held()
            world.held.renew()
            assert world.held.token == token
            info = world.client.inspect(name)
            assert (info.token, (info.owner or "").partition("/")[0]) == (
                int(token),
                world.client.id,
            ), f"after: {act}"
    world.client.close()


def holding_and_forced(url: str, name: str) -> None:
    """A copy can take the lock away from its original by force, and in no other way."""
    client = fencedlock.connect(url, ttl=1)
    lock = client.RLock(name)
    with lock as token:
        copy = Copy(lambda _: _force(client, token))
        copy.end()
        raises(fencedlock.LockLostError, lock.renew)
        raises(fencedlock.LockLostError, lock.release)
        lock.acquire()


def _force(client: fencedlock.Client, token: fencedlock.FencingToken) -> None:
    assert client.force_release(token.lock) == token


def looking(url: str, name: str) -> None:
    """An iteration over many locks begins in the original, and continues in a copy.

    There the next page has to be requested.
    """
    from fencedlock.backends.redis import backend

    backend._SCAN_COUNT = "1"
    client = fencedlock.connect(url, ttl=30)
    locks = [client.RLock(f"{name}/{number}") for number in range(20)]
    for lock in locks:
        lock.acquire()
    looking = client.locks(name)
    seen = {next(looking).name}

    def go_on() -> None:
        assert seen | {info.name for info in looking} == {lock.name for lock in locks}

    Copy(lambda _: go_on()).end()
    go_on()
    for lock in locks:
        lock.release()


def mutexes(url: str, name: str) -> None:
    """Another thread holds mutexes when the process is copied. They stay locked in the copy."""
    world = World(url, name)
    with world.other:
        pass
    backend: Any = world.client._table.backend
    taken, done = threading.Event(), threading.Event()

    def be_busy() -> None:
        with (
            world.client._table.mutex,
            backend.connections._mutex,
            backend._inbox._turn,
            connecting._mutex,
        ):
            taken.set()
            done.wait()

    thread = threading.Thread(target=be_busy)
    thread.start()
    taken.wait()

    def go_on(_: Copy) -> None:
        world.enter_other()
        stranger = fencedlock.connect(url, ttl=30)
        with stranger.RLock(name):
            world.wait()
        world.pickle()
        world.client.close()

    copy = Copy(go_on)
    copy.end()
    done.set()
    thread.join()


# --- a client that waits


def waiting(url: str, name: str) -> None:
    """Another thread waits, with an open inbox, when the process is copied.

    The copy waits as a client of its own, and neither receives the messages to the other.
    """
    client, stranger = fencedlock.connect(url, ttl=30), fencedlock.connect(url, ttl=30)
    blocker, lock = stranger.RLock(name), client.FairLock(name)
    blocker.acquire()
    entered: list[str] = []
    leave = threading.Event()

    def visit() -> None:
        with lock:
            entered.append(client.id)
            leave.wait()

    thread = threading.Thread(target=visit)
    thread.start()
    eventually(lambda: client.inspect(name).waiters)
    inbox: Any = client._table.backend._inbox  # type: ignore[attr-defined]
    stream = inbox._stream
    assert stream is not None

    def wait_too(copy: Copy) -> None:
        with lock:
            copy.say("entered")
            assert client.inspect(name).waiters == ()

    copy = Copy(wait_too)
    eventually(lambda: len(client.inspect(name).waiters) == 2)
    owners = [waiter.owner.partition("/")[0] for waiter in client.inspect(name).waiters]
    assert owners[0] == client.id != owners[1], (
        "the copy has a place of its own, behind its original's"
    )
    with _doorbells(client) as heard:
        blocker.release()
        eventually(lambda: entered)
    assert heard, "the lock came by a message, and not because the waiter looked"
    leave.set()
    assert copy.hear() == "entered"
    thread.join()
    copy.end()
    assert inbox._stream is stream, "the copy's end has cut the inbox of its original"


class _doorbells:  # noqa: N801 - a context manager
    """Records the doorbells of this client."""

    def __init__(self, client: fencedlock.Client) -> None:
        self._table: Any = client._table
        self.heard: list[str] = []

    def __enter__(self) -> list[str]:
        doorbell = self._table.doorbell

        def hear(claim_id: str, token: int, abandoned: bool) -> None:
            self.heard.append(claim_id)
            doorbell(claim_id, token, abandoned)

        self._table.doorbell = hear
        return self.heard

    def __exit__(self, *_: object) -> None:
        del self._table.doorbell


# --- a copy that is made in a signal handler, in the middle of acquire


def handler_while_waiting(url: str, name: str, how: str, cls: str) -> None:
    """The copy continues in the middle of an acquire in which its original waits.

    Each gets the lock in its turn, as a client of its own.
    """
    client, stranger = fencedlock.connect(url, ttl=30), fencedlock.connect(url, ttl=30)
    blocker, lock, blocked = stranger.RLock(name), getattr(client, cls)(name), threading.Event()
    pids: list[int] = []
    original, (reader, writer) = os.getpid(), os.pipe()

    def fork(*_: object) -> None:
        pids.append(FORKS[how]())
        os.write(writer, b".")

    def interrupt() -> None:
        blocker.acquire()
        blocked.set()
        eventually(lambda: client.inspect(name).waiters)
        os.kill(original, signal.SIGUSR1)
        os.read(reader, 1)
        eventually(lambda: len(client.inspect(name).waiters) == 2)
        blocker.release()

    signal.signal(signal.SIGUSR1, fork)
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert blocked.wait(20)
    before = client.id
    with lock as token:
        if pids == [0]:
            finish(lambda: _check_held(client, lock, before))
        assert client.inspect(name).token == int(token)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert not client.inspect(name).locked


def _check_held(client: fencedlock.Client, lock: fencedlock.RLock, id_before: str) -> None:
    info = client.inspect(lock.name)
    assert info.token == int(lock.token)
    assert client.id != id_before
    assert (info.owner or "").startswith(client.id), (
        f"{info.owner} holds, and this client is {client.id}"
    )
    lock.ensure_held()


def handler_while_asking(url: str, name: str, how: str, first: str, server_pid: str) -> None:
    """The server is silent, and both processes continue in the middle of one call.

    An answer to the original must not be a grant to the copy. ``first`` is the process that
    continues first. The other one stays in its signal handler until the first is done.
    """
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)
    with lock:
        pass
    ours, theirs = socket.socketpair()
    pids: list[int] = []
    original, server = os.getpid(), psutil.Process(int(server_pid))

    def fork(*_: object) -> None:
        pids.append(FORKS[how]())
        me = "copy" if pids == [0] else "original"
        if me == "original":
            server.resume()
        if first != me:
            theirs.recv(1)

    def in_recv() -> bool:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        return "recv" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)

    def interrupt() -> None:
        eventually(in_recv)
        os.kill(original, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, fork)
    settle()  # the heartbeat's first check of the server's settings needs the connection too
    server.suspend()
    eventually(lambda: server.status() == psutil.STATUS_STOPPED)
    thread = threading.Thread(target=interrupt)
    before = client.id
    thread.start()
    try:
        got = lock.acquire(timeout=4)
    except fencedlock.BackendUnavailableError:
        got = False  # the other process has taken the answer
    if pids == [0]:
        finish(lambda: _after_asking(client, lock, before, got, ours))
    ours.send(b".")
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    ours.close()
    theirs.close()
    assert got or first == "copy"
    if got:
        lock.ensure_held()
        lock.renew()
        info = client.inspect(name)
        assert (info.token, (info.owner or "").partition("/")[0]) == (int(lock.token), client.id), (
            "the copy has taken the original's lock"
        )
        lock.release()
    with lock:
        lock.ensure_held()


def _after_asking(
    client: fencedlock.Client,
    lock: fencedlock.RLock,
    id_before: str,
    got: bool,
    original: socket.socket,
) -> None:
    try:
        assert got == lock._is_owned(), (
            f"acquire returned {got}, and the copy is {'' if lock._is_owned() else 'no '}owner"
        )
        assert got == (client.inspect(lock.name).owner or "").startswith(f"{client.id}/")
        assert client.id != id_before
    finally:
        original.send(b".")


# --- a client of etcd, which can't be used in a copy once it was used


def used_on_etcd(url: str, name: str) -> None:
    """A copy that uses the client gets one clear error, at once, each time.

    The original continues to work, and the copy's end takes nothing from it.
    """
    client = fencedlock.connect(url, ttl=30)
    lock, other = client.RLock(name), client.RLock(f"{name}/other")

    def try_all(_: Copy) -> None:
        calls: list[Callable[[], object]] = [
            lambda: lock.acquire(False),
            lambda: other.acquire(timeout=20),
            other.acquire,
            client.ping,
            lambda: client.inspect(name),
            lambda: list(client.locks()),
        ]
        errors = set()
        for call in calls:
            try:
                call()
            except fencedlock.FencedLockError as error:
                errors.add(type(error))
                assert "fork" in str(error), error
            else:
                raise AssertionError("the call worked, so the copy has half of gRPC")
        assert len(errors) == 1, errors
        raises(fencedlock.NotOwnedError, lock.release)
        client.close()

    def expect_refusal(_: Copy) -> None:
        raises(
            fencedlock.BackendMisconfiguredError,
            lambda: fencedlock.connect(url).RLock(name).acquire(False),
        )

    with lock as token:
        Copy(try_all).end()
        Copy(lambda _: None).end()
        Copy(lambda _: None, fork_in_python).end()
        # Python's fork has closed all channels, but gRPC is still loaded.
        Copy(expect_refusal).end()
        lock.ensure_held()
        lock.renew()
        assert client.inspect(name).token == int(token)
    client.close()
    Copy(expect_refusal).end()


def used_by_another_on_etcd(url: str, name: str) -> None:
    """All users of gRPC in a process share its state.

    So a channel of the package etcd3, which is not ours, makes gRPC as useless in a copy.
    """
    etcd3: Any = import_module("etcd3")
    host, _, port = url.removeprefix("etcd://").partition(":")
    ready = fencedlock.connect(etcd3.client(host, int(port)), ttl=30)
    with ready.RLock(name):
        pass

    def expect_refusal(_: Copy) -> None:
        raises(
            fencedlock.BackendMisconfiguredError,
            lambda: fencedlock.connect(url).RLock(name).acquire(False),
        )

    Copy(expect_refusal).end()


# --- equal process ids


def namespaces(url: str, name: str) -> None:
    """Original and copy are both process 1 of a PID namespace.

    Only their memory tells them apart.
    """
    _in_new_namespace(lambda _: _original(url, name))


def _original(url: str, name: str) -> None:
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)
    holds = url.startswith("redis")  # a client of etcd can't be used in a copy once it was used
    if holds:
        lock.acquire()
        # After unshare() no thread can be started.
        eventually(lambda: client._table.heartbeat._worker.running)
    id_before = client.id
    _in_new_namespace(lambda _: _copy(client, lock, id_before, holds=holds))
    if holds:
        lock.ensure_held()
        assert client.inspect(name).token == int(lock.token)
        lock.release()


def _copy(
    client: fencedlock.Client, lock: fencedlock.RLock, id_before: str, *, holds: bool
) -> None:
    assert os.getpid() == 1
    if holds:
        raises(fencedlock.NotOwnedError, lock.release)
        assert not lock.acquire(False)
        lock = client.RLock(f"{lock.name}/copy")
    with lock:
        assert client.id != id_before


def _in_new_namespace(body: Callable[[Copy], object]) -> None:
    if libc.unshare(_CLONE_NEWPID) != 0:
        print(f"not permitted: {os.strerror(ctypes.get_errno())}", flush=True)
        os._exit(0)
    Copy(body).end()


SCENARIOS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (
        unused,
        unused_generations,
        used,
        generations,
        holding,
        holding_and_forced,
        looking,
        mutexes,
        waiting,
        handler_while_waiting,
        handler_while_asking,
        used_on_etcd,
        used_by_another_on_etcd,
        namespaces,
    )
}

if __name__ == "__main__":
    faulthandler.register(signal.SIGALRM, chain=True)  # shows where a program hangs
    signal.alarm(PATIENCE_SECONDS)
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
    signal.alarm(0)
    print("done", flush=True)
