"""A signal handler raises an exception at any place of a call.

The exception comes out of the call unchanged, and leaves nothing behind, here or on the server.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import fencedlock
from fencedlock.runtime.interrupts import raised_by_handler
from tests.conftest import eventually
from tests.interrupts import Interrupt, TimeLimit, TimeLimitError
from tests.servers import LockServer, RedisServer

MOST_PLACES = 5000
TTL_SECONDS = 20.0


@pytest.fixture(params=["redis", "etcd"])
def server(request: pytest.FixtureRequest, server: LockServer) -> LockServer:
    """A lock server of each family."""
    return server if request.param == "redis" else request.getfixturevalue("etcd_server")


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    """Turns off the garbage collector.

    It may call a destructor in the middle of anything, and Python ignores an exception in one.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_free(client: fencedlock.Client, name: str) -> bool:
    """Return True if nobody holds the lock or waits for it.

    The tombstone of a claim may be there for some seconds more.
    """
    info = client.inspect(name)
    return not info.locked and not info.waiters


class _Stage:
    """A client whose calls are interrupted, and another client that observes the lock."""

    def __init__(
        self, connect: Callable[..., fencedlock.Client], server: LockServer, name: str
    ) -> None:
        self.client = connect(server.url, ttl=TTL_SECONDS)
        self.other = connect(server.url, ttl=TTL_SECONDS)
        self.lock = self.client.RLock(name)
        self.theirs = self.other.RLock(name)
        with self.lock:
            pass  # do what happens only once
        with self.theirs:
            pass

    def nothing(self) -> None:
        """The lock is free before the call."""

    def hold(self) -> None:
        self.lock.acquire()

    def hold_there(self) -> None:
        self.theirs.acquire()

    def free(self) -> None:
        self.lock.acquire()
        self.lock.release()

    def within(self) -> None:
        with self.lock.within(60):
            pass

    def with_statement(self) -> None:
        with self.lock:
            pass

    def nested(self) -> None:
        with self.lock, self.lock:
            pass

    def renew(self) -> None:
        self.lock.renew(9)

    def wait(self) -> None:
        self.lock.acquire(timeout=0.02)

    def wait_for_condition(self) -> None:
        condition = threading.Condition(self.lock)  # type: ignore[arg-type]
        condition.acquire()
        try:
            condition.wait(0.01)
        finally:
            if self.lock._is_owned():
                self.lock.release()

    def let_go(self) -> None:
        """Release what the caller still owns, as it would release a lock of ``threading``."""
        for lock in (self.lock, self.theirs):
            while lock._is_owned():
                lock.release()

    def is_free(self) -> bool:
        return is_free(self.other, self.lock.name)

    def works(self) -> bool:
        """Return True if another thread can use the client, and nobody holds its mutex."""
        outcome: list[bool] = []

        def use() -> None:
            with self.client._table.mutex:
                pass
            lock = self.client.RLock(f"{self.lock.name}/works")
            outcome.append(lock.acquire(timeout=5))
            lock.release()

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(20)
        return outcome == [True]


@pytest.fixture
def stage(connect: Callable[..., fencedlock.Client], server: LockServer, name: str) -> _Stage:
    return _Stage(connect, server, name)


KINDS = (TimeLimit, TimeLimitError, KeyboardInterrupt)
CALLS = {
    "free": ("nothing", "free"),
    "release": ("hold", "let_go"),
    "with": ("nothing", "with_statement"),
    "within": ("nothing", "within"),
    "nested": ("nothing", "nested"),
    "renew": ("hold", "renew"),
    "wait": ("hold_there", "wait"),
    "Condition.wait": ("nothing", "wait_for_condition"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_each_place_of_a_call(
    call: str, kind: type[BaseException], stage: _Stage, server: LockServer
) -> None:
    prepare, act = (getattr(stage, method) for method in CALLS[call])
    faults = []
    # A call to etcd has hundreds of places, most of them in gRPC. Each kind of exception is raised
    # at its own part of them.
    first, step = (
        (1, 1) if isinstance(server, RedisServer) else (1 + KINDS.index(kind), 3 * len(KINDS))
    )
    for number in range(first, MOST_PLACES, step):
        prepare()
        interrupt, caught = Interrupt(number, kind), None
        try:
            interrupt.run(act)
        except BaseException as error:
            caught = error
        if not interrupt.came:
            assert caught is None
            break
        if type(caught) is not kind:
            faults.append(f"{number} {interrupt.where}: {caught!r} came out")
        if call in ("with", "within", "nested"):  # the statement has left the lock
            eventually(lambda: not stage.lock._is_owned())
        caught = None
        stage.let_go()
        if not stage.works():
            pytest.fail(f"{number} {interrupt.where}: another thread can't use the client any more")
        eventually(stage.is_free)
    assert faults == []
    assert number > 10
    stage.let_go()


def test_at_each_place_of_close(
    connect: Callable[..., fencedlock.Client], server: LockServer, name: str
) -> None:
    other = connect(server.url)
    for number in range(1, MOST_PLACES):
        client = connect(server.url, ttl=TTL_SECONDS)
        lock = client.RLock(name)
        lock.acquire()
        interrupt = Interrupt(number, TimeLimit)
        try:
            interrupt.run(client.close)
        except TimeLimit:
            client.close()
        eventually(lambda: is_free(other, name))
        if not interrupt.came:
            break
    assert number > 3


def test_at_each_place_of_the_first_call(
    connect: Callable[..., fencedlock.Client], server: LockServer, name: str
) -> None:
    other = connect(server.url)
    for number in range(1, MOST_PLACES):
        client = connect(server.url, ttl=TTL_SECONDS)
        lock = client.RLock(name)
        interrupt = Interrupt(number, TimeLimit)
        try:
            interrupt.run(lock.acquire)
        except TimeLimit:
            assert not lock._is_owned()
        assert lock.acquire(timeout=10)
        lock.release()
        client.close()
        eventually(lambda: is_free(other, name))
        if not interrupt.came:
            break
    assert number > 10


@pytest.fixture
def alarm() -> Iterator[Callable[[type[BaseException]], None]]:
    """A function that installs a handler of SIGUSR1 that raises an exception."""
    before = signal.getsignal(signal.SIGUSR1)

    def arm(kind: type[BaseException]) -> None:
        def raise_it(*_: object) -> None:
            raise kind("time is up")

        signal.signal(signal.SIGUSR1, raise_it)

    yield arm
    signal.signal(signal.SIGUSR1, before)


def _signal_when(condition: Callable[[], object]) -> threading.Thread:
    """Send SIGUSR1 to the main thread as soon as the condition is true."""

    def send() -> None:
        eventually(condition)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "kind", [TimeLimit, TimeLimitError, ConnectionError, ValueError, KeyboardInterrupt]
)
def test_a_time_limit_ends_a_wait_at_once(
    kind: type[BaseException],
    stage: _Stage,
    name: str,
    alarm: Callable[[type[BaseException]], None],
) -> None:
    alarm(kind)
    stage.hold_there()
    thread = _signal_when(lambda: stage.other.inspect(name).waiters)
    with pytest.raises(kind, match="time is up") as caught:
        stage.lock.acquire(timeout=60)
    thread.join()
    assert type(caught.value) is kind
    assert stage.other.inspect(name).waiters == ()
    stage.let_go()
    assert stage.is_free()


@pytest.mark.parametrize(
    "kind", [TimeLimit, TimeLimitError, ConnectionError, ValueError, KeyboardInterrupt]
)
def test_a_time_limit_ends_a_call_to_a_silent_server(
    kind: type[BaseException],
    new_server: Callable[[], LockServer],
    connect: Callable[..., fencedlock.Client],
    alarm: Callable[[type[BaseException]], None],
) -> None:
    alarm(kind)
    server = new_server()
    lock = connect(server.url, ttl=TTL_SECONDS).RLock("x")
    with lock:
        pass
    server.freeze()
    begun = time.monotonic()
    thread = _signal_when(lambda: time.monotonic() > begun + 0.2)
    with pytest.raises(kind, match="time is up") as caught:
        lock.acquire(timeout=60)
    thread.join()
    assert type(caught.value) is kind
    server.thaw()
    assert lock.acquire(timeout=20)
    lock.release()


def test_what_a_body_raises_is_masked_by_nothing(stage: _Stage, name: str) -> None:
    with pytest.raises(TimeLimit) as caught, stage.lock:
        stage.other.force_release(name)
        raise TimeLimit("of the body")
    assert any("besides: " in note for note in caught.value.__notes__)


def test_an_event_that_is_set_while_its_waiter_is_interrupted_hangs_nobody(
    stage: _Stage, alarm: Callable[[type[BaseException]], None], name: str
) -> None:
    alarm(TimeLimit)
    with pytest.raises(fencedlock.LockLostError), stage.lock:
        lost = stage.lock.lost
        for _ in range(20):
            thread = _signal_when(lambda: lost._sleepers)  # type: ignore[attr-defined]
            with pytest.raises(TimeLimit):
                lost.wait(60)
            thread.join()
        stage.other.force_release(name)
        stage.lock.renew()


def test_a_handled_time_limit_is_not_taken_for_what_is_raised_later() -> None:
    def handler(_number: int, _frame: object) -> None:
        raise TimeLimitError

    def later() -> None:
        try:
            raise OSError("of a later call")
        except OSError as error:
            assert isinstance(error.__context__, TimeLimitError)
            assert raised_by_handler(error) is None

    try:
        handler(1, sys._getframe())
    except TimeLimitError as limit:
        assert raised_by_handler(limit) is limit
        later()


def test_a_time_limit_that_a_library_has_turned_into_its_own_error_is_found() -> None:
    def handler(*_: object) -> None:
        raise TimeLimitError

    def library() -> None:
        try:
            handler(1, sys._getframe())
        except OSError as error:
            raise ConnectionError("as redis-py says") from error

    with pytest.raises(ConnectionError) as caught:
        library()
    assert type(raised_by_handler(caught.value)) is TimeLimitError


FIRST_CALLS = """
import sys, threading

main, imported = threading.get_ident(), []

def watch(event, arguments):
    if event == "import" and armed and threading.get_ident() == main:
        imported.append(arguments[0])

armed = False
sys.addaudithook(watch)

import fencedlock
client, other = (fencedlock.connect(sys.argv[1], ttl=5) for _ in range(2))
lock, theirs = client.FairLock("imports"), other.FairLock("imports")
condition = threading.Condition(lock)
taken, ending = threading.Event(), threading.Event()

def hold():
    with theirs:
        taken.set()
        ending.wait()

def fails(call):
    try:
        call()
    except (RuntimeError, fencedlock.FencedLockError):
        pass

armed = True
client.ping()
with lock, lock:
    lock.renew()
    condition.wait(0.01)
fails(lock.release)
thread = threading.Thread(target=hold)
thread.start()
taken.wait()
assert not lock.acquire(False)
assert not lock.acquire(timeout=0.1)
assert lock.locked()
assert [info.name for info in client.locks()] == ["imports"]
threading.Timer(0.3, ending.set).start()
lock.acquire()
client.raise_floor(lock.token)
other.force_release("imports")
fails(lock.renew)
fails(lock.release)
thread.join()
client.close()
other.close()
armed = False
print(imported)
"""


def test_no_call_imports_anything(server: LockServer) -> None:
    """An interrupted import can keep the lock of its module.

    Then every other thread that needs the module waits for ever.
    """
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS, server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
