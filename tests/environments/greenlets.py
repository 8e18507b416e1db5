"""Programs of greenlets: ``python -m tests.environments.greenlets LIBRARY SCENARIO URL NAME``.

LIBRARY is gevent or eventlet. The test reads what the program prints, and freezes and thaws the
server.
"""

from __future__ import annotations

import os
import sys
import warnings

LIBRARY, SCENARIO = sys.argv[1:3] if __name__ == "__main__" else ("", "")

if LIBRARY == "gevent" and not SCENARIO.startswith("late"):
    from gevent import monkey

    monkey.patch_all()
elif LIBRARY == "eventlet" and not SCENARIO.startswith("late"):
    warnings.simplefilter("ignore", DeprecationWarning)  # it is deprecated
    import eventlet

    eventlet.monkey_patch()

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import fencedlock

PATIENCE_SECONDS = 30.0
LEASE_SECONDS = 0.6


class _Greenlets:
    """The functions that the two libraries name differently."""

    def __init__(self, library: str) -> None:
        self._library = import_module(library) if library else None
        self._gevent = library == "gevent"

    def spawn(self, body: Callable[..., object], *arguments: object) -> Any:
        return self._library.spawn(body, *arguments)  # type: ignore[union-attr]

    def join(self, greenlet: Any) -> Any:
        """Wait for a greenlet. Return what it returned, or raise what it raised."""
        return greenlet.get() if self._gevent else greenlet.wait()

    def sleep(self, seconds: float) -> None:
        self._library.sleep(seconds)  # type: ignore[union-attr]

    def kill(self, greenlet: Any) -> None:
        greenlet.kill()

    @property
    def timeout(self) -> Any:
        """The library's class of time limits."""
        return self._library.Timeout  # type: ignore[union-attr]

    @property
    def killed(self) -> type[BaseException]:
        """The exception that is raised in a greenlet that is killed."""
        return import_module("greenlet").GreenletExit  # type: ignore[no-any-return]

    def patch(self) -> None:
        if self._gevent:
            import_module("gevent.monkey").patch_all()
        else:
            self._library.monkey_patch()  # type: ignore[union-attr]


green = _Greenlets(LIBRARY)


def eventually(condition: Callable[[], Any]) -> None:
    with green.timeout(PATIENCE_SECONDS):
        while not condition():
            green.sleep(0.002)


def raises(kind: type[BaseException], call: Callable[[], object]) -> BaseException:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"it did not raise {kind.__name__}")


def ask_test(words: str) -> None:
    """Ask the test to do something, and wait until it is done. No greenlet runs meanwhile."""
    print(words, flush=True)
    sys.stdin.readline()


# --- owners, and time


def owners(url: str, name: str) -> None:
    """Two greenlets are two owners, and several increase one counter together."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.FairLock(name)

    def stranger() -> None:
        assert not lock._is_owned()
        assert not lock.acquire(False)

    with lock, lock:
        green.join(green.spawn(stranger))
        assert lock._recursion_count() == 2
    counter, tokens = [0], []

    def count_up() -> None:
        for _ in range(10):
            with lock as token:
                before = counter[0]
                green.sleep(0)
                counter[0] = before + 1
                tokens.append(int(token))

    for greenlet in [green.spawn(count_up) for _ in range(5)]:
        green.join(greenlet)
    assert counter == [50]
    assert tokens == sorted(set(tokens))
    client.close()


def frozen(url: str, name: str) -> None:
    """The server is silent. Time limits are kept, and other greenlets run meanwhile."""
    client = fencedlock.connect(url, ttl=30, socket_timeout=1)
    lock = client.RLock(name)
    with lock:
        pass
    ticks: list[None] = []

    def tick() -> None:
        while True:
            ticks.append(None)
            green.sleep(0.01)

    ticking = green.spawn(tick)
    ask_test("freeze")
    with green.timeout(PATIENCE_SECONDS):
        before = len(ticks)
        raises(fencedlock.BackendUnavailableError, lambda: lock.acquire(timeout=0.5))
        raises(fencedlock.BackendUnavailableError, lambda: lock.acquire(False))
        raises(fencedlock.BackendUnavailableError, client.ping)
        assert len(ticks) > before + 10
    limits: list[Any] = []

    def wait_with_limit() -> None:
        with green.timeout(0.2) as limit:
            limits.append(limit)
            lock.acquire()

    assert raises(green.timeout, wait_with_limit) is limits[0]
    ask_test("thaw")
    green.kill(ticking)
    with lock:
        pass
    client.close()


def cancelled(url: str, name: str) -> None:
    """A Cancellation, the library's time limit and a kill end a wait, and leave no place behind."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.FairLock(name)
    limits: list[Any] = []

    def wait_with_limit() -> None:
        with green.timeout(0.3) as limit:
            limits.append(limit)
            lock.acquire()

    cancellation = fencedlock.Cancellation()
    with lock:
        waiting = green.spawn(
            raises, fencedlock.AcquireCancelledError, lambda: lock.acquire(cancel=cancellation)
        )
        eventually(lambda: client.inspect(name).waiters)
        cancellation.cancel()
        green.join(waiting)
        assert client.inspect(name).waiters == ()

        error = green.join(green.spawn(raises, green.timeout, wait_with_limit))
        assert error is limits[0]
        assert client.inspect(name).waiters == ()

        waiting = green.spawn(raises, green.killed, lock.acquire)
        eventually(lambda: client.inspect(name).waiters)
        green.kill(waiting)
        eventually(lambda: client.inspect(name).waiters == ())
    client.close()


def lost(url: str, name: str) -> None:
    """The server is silent for longer than the lease. The holder learns this by its own clock."""
    told: list[str] = []
    client = fencedlock.connect(
        url, ttl=LEASE_SECONDS, on_lost=lambda lock, _: told.append(lock.name)
    )
    lock = client.RLock(name)
    lock.acquire()
    before = lock._owned().deadline
    eventually(lambda: lock._owned().deadline > before)  # the heartbeat's greenlet runs
    ask_test("freeze")
    with green.timeout(PATIENCE_SECONDS):
        assert lock.lost.wait(PATIENCE_SECONDS)
        eventually(lambda: told == [name])
        raises(fencedlock.LockLostError, lock.ensure_held)
        raises(fencedlock.LockLostError, lock.release)
    ask_test("thaw")
    with lock:
        pass
    client.close()


def strangers(url: str, name: str) -> None:
    """A greenlet that releases a lock of another one gets an error, which names the holder."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.FairLock(name)
    with lock:
        error = green.join(green.spawn(raises, fencedlock.NotOwnedError, lock.release))
        assert "cannot release un-acquired lock" in str(error)
        lock.ensure_held()
    client.close()


def works_or_says_why(url: str, name: str) -> None:
    """The locks work, or raise one clear error at once.

    No greenlet waits for ever, and none stops all others.
    """
    with green.timeout(PATIENCE_SECONDS):
        try:
            client = fencedlock.connect(url, ttl=30)
            with client.RLock(name):
                pass
        except fencedlock.ConfigurationError as error:
            assert LIBRARY in str(error)
            return
        client.close()
    assert LIBRARY == "gevent", "gRPC can't work under eventlet"
    owners(url, f"{name}/owners")


# --- hand-offs


class _Cuts(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "was cut" in record.getMessage():
            self.messages.append(record.getMessage())


@contextmanager
def _events_of(client: fencedlock.Client) -> Iterator[list[str]]:
    """Record the doorbells of this client's waiters, and their questions, in order."""
    table: Any = client._table
    bound_class: Any = type(table.backend.bind_lock("x"))
    events: list[str] = []
    doorbell, acquire = table.doorbell, bound_class.acquire

    def hear(*arguments: Any) -> None:
        events.append("doorbell")
        doorbell(*arguments)

    def ask(bound: Any, claim: Any, *arguments: Any) -> Any:
        if claim.id.startswith(client.id):
            events.append("asked")
        return acquire(bound, claim, *arguments)

    table.doorbell, bound_class.acquire = hear, ask
    try:
        yield events
    finally:
        del table.doorbell
        bound_class.acquire = acquire


def handed_over(url: str, name: str) -> None:
    """A waiter gets the lock by the message of the hand-over, and not by asking now and then."""
    logger, cuts = logging.getLogger("fencedlock"), _Cuts()
    logger.addHandler(cuts)
    logger.setLevel(logging.DEBUG)
    first, second = fencedlock.connect(url, ttl=30), fencedlock.connect(url, ttl=30)
    holding, waiting = first.RLock(name), second.RLock(name)

    def visit() -> None:
        with waiting:
            events.append("got")

    with _events_of(second) as events:
        for _ in range(10):
            holding.acquire()
            visitor = green.spawn(visit)
            eventually(lambda: first.inspect(name).waiters)
            del events[:]
            holding.release()
            green.join(visitor)
            assert events == ["doorbell", "got"]
    assert cuts.messages == []
    first.close()
    second.close()


# --- patched after the import


def late(url: str, name: str) -> None:
    """Greenlets could not be told apart, so there is one clear error, and nothing is locked."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)
    green.patch()
    _expect_refusals(client, lock)


def late_and_used(url: str, name: str) -> None:
    """The error is the same if connections are open already."""
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)
    with lock:
        pass
    green.patch()
    _expect_refusals(client, lock)
    print("done", flush=True)
    # This skips the end of the interpreter. Threads that began before the patch may disturb it, and
    # that is not this library's fault.
    os._exit(0)


def _expect_refusals(client: fencedlock.Client, lock: fencedlock.RLock) -> None:
    for call in (
        lambda: lock.acquire(False),
        lambda: lock.acquire(timeout=1),
        lock.acquire,
        lock.__enter__,
    ):
        error = raises(fencedlock.ConfigurationError, call)
        assert "before the import" in str(error)
    assert not lock._is_owned()


SCENARIOS: dict[str, Callable[[str, str], None]] = {
    each.__name__: each
    for each in (
        owners,
        strangers,
        works_or_says_why,
        frozen,
        cancelled,
        lost,
        handed_over,
        late,
        late_and_used,
    )
}

if __name__ == "__main__":
    SCENARIOS[SCENARIO](*sys.argv[3:])
    print("done", flush=True)
