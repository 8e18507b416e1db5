"""What the library takes from the system, in the simulated world: locks, queues, threads, time."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, Self

import fencedlock.clock
from fencedlock.runtime import (
    cancellation,
    interrupts,
    owners,
    threads,
    waiting,
)
from tests.simulation.world import Thread, World

WALL_CLOCK_SECONDS = 1_700_000_000.0
"""The wall clock of the world at its time 0."""

_worlds: list[World] = []


def here() -> World:
    """Return the world in which the caller is."""
    return _worlds[-1]


def _thread() -> Thread:
    thread = here().thread
    assert thread is not None, "only simulated threads may wait"
    return thread


def now_seconds() -> float:
    world = here()
    return world.now if world.process is None else world.process.now_seconds()


class Waiters:
    """The threads that wait for one thing."""

    def __init__(self) -> None:
        self._threads: list[tuple[Thread, int]] = []

    def wait(self, seconds: float | None = None) -> bool:
        thread = _thread()
        mine = thread, thread.turn + 1
        self._threads.append(mine)
        try:
            return here().wait(seconds)
        finally:
            if mine in self._threads:
                self._threads.remove(mine)

    def wake_all(self) -> None:
        for thread, turn in self._threads:
            here().wake(thread, turn)
        self._threads = []


class Mutex:
    """A reentrant mutex."""

    def __init__(self) -> None:
        self._owner: Thread | None = None
        self._depth = 0
        self._waiters = Waiters()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        thread = here().thread
        while self._depth and self._owner is not thread and not self._owner_is_dead():
            if not blocking:
                return False
            if not self._waiters.wait(None if timeout < 0 else timeout) and timeout >= 0:
                return False
        if self._owner is not thread:
            self._owner, self._depth = thread, 0
        self._depth += 1
        return True

    def _owner_is_dead(self) -> bool:
        return self._owner is not None and self._owner.process.is_dead

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._waiters.wake_all()

    def _is_owned(self) -> bool:
        return bool(self._depth) and self._owner is here().thread

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()


class Bell:
    """The same as :class:`fencedlock.runtime.bell.Bell`."""

    def __init__(self) -> None:
        self.rung = False
        self.alarm: Callable[[], object] | None = None
        self._nudged = False
        self._waiters = Waiters()

    def ring(self) -> None:
        self.rung = True
        self.nudge()

    def nudge(self) -> None:
        self._nudged = True
        self._waiters.wake_all()
        if self.alarm is not None:
            self.alarm()

    def sleep(self, timeout_seconds: float) -> None:
        if timeout_seconds > 0 and not self._nudged:
            self._waiters.wait(timeout_seconds)
        self._nudged = False

    def wait(self, timeout_seconds: float) -> None:
        self.sleep(timeout_seconds)
        self.rung = False


class Queue:
    """The part of ``queue.SimpleQueue`` that the library uses."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiters = Waiters()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._waiters.wake_all()

    def get(self, timeout: float | None = None) -> Any:
        until = None if timeout is None else here().now + timeout
        while not self._items:
            left = None if until is None else until - here().now
            if left is not None and left <= 0:
                raise Empty
            self._waiters.wait(left)
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()


class Worker:
    """The same as :class:`fencedlock.runtime.threads.Worker`."""

    def __init__(self, run: Callable[[], object], name: str) -> None:
        self._run = run
        self._name = name
        self._thread: Thread | None = None
        self._ended = Waiters()

    def start(self) -> None:
        process = here().process
        if self._thread is None and process is not None and not process.is_dead:
            self._thread = process.start(self._work, self._name)

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._ended.wake_all()

    @property
    def running(self) -> bool:
        return self._thread is not None

    @property
    def started(self) -> bool:
        return self._thread is not None

    def is_current(self) -> bool:
        return here().thread is self._thread

    def wait(self, timeout_seconds: float) -> bool:
        if self._thread is None or self.is_current() or self._thread.has_ended:
            return True
        self._ended.wait(timeout_seconds)
        return self._thread.has_ended


class Timer:
    """The same as ``threading.Timer``."""

    def __init__(self, seconds: float, function: Callable[[], object]) -> None:
        self._seconds, self._function, self._cancelled = seconds, function, False

    def start(self) -> None:
        process = here().process
        assert process is not None
        here().after(self._seconds, process.call, self._ring)

    def cancel(self) -> None:
        self._cancelled = True

    def _ring(self) -> None:
        if not self._cancelled:
            self._function()


class Local:
    """Values of which each simulated thread has its own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return _thread().own[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        thread = here().thread
        if thread is not None:
            thread.own[name] = value


class Owner(owners.Owner):
    """A simulated thread as the owner of locks."""

    __slots__ = ("_thread",)
    kind = "thread"

    def __init__(self, thread: Thread) -> None:
        self._thread = thread
        self.entering = None
        self.id = here().number("owner")
        self.holder = f"simulation/{thread.process.name}/{thread.name}"
        self.thread = self

    def alive(self) -> bool:
        return not self._thread.has_ended

    def name(self) -> str:
        return f"thread {self._thread.name!r}"


def current_owner() -> owners.Owner:
    thread = _thread()
    owner: owners.Owner | None = thread.own.get("owner")
    if owner is None:
        owner = thread.own["owner"] = Owner(thread)
    return owner


def _random_hex() -> str:
    return f"{here().rng.getrandbits(64):016x}"


def new_claim_id(client_id: str, owner_id: int) -> str:
    return f"{client_id}/{owner_id}/{_random_hex()}"


def _wait_for_event(event: interrupts.Event, timeout: float | None = None) -> bool:
    if event.is_set():
        return True
    sleeper: Any = _Sleeper()
    event.call(sleeper)
    try:
        return sleeper.wait(timeout) or event.is_set()
    finally:
        event.call_no_more(sleeper)


class _Sleeper(Waiters):
    """Takes the place of the mutex by which a thread waits for an event."""

    release = Waiters.wake_all


def sleep(seconds: float) -> None:
    here().wait(seconds)


def wall_clock() -> float:
    return WALL_CLOCK_SECONDS + here().now


TIME = SimpleNamespace(
    sleep=sleep,
    time=wall_clock,
    time_ns=lambda: int(wall_clock() * 1e9),
    monotonic=now_seconds,
    perf_counter=now_seconds,
)
_RANDOM = SimpleNamespace(
    uniform=lambda least, most: here().rng.uniform(least, most), Random=random.Random
)
_SECRETS = SimpleNamespace(
    token_hex=lambda _size=8: _random_hex(), token_urlsafe=lambda _size=32: _random_hex() * 4
)


@contextmanager
def system_of(*modules: Any) -> Iterator[Patches]:
    """Give the library and these modules the simulated system in place of the real one.

    What else is to be replaced meanwhile can be set with the patches that it yields.
    """
    with Patches() as patches:
        library = [
            module
            for name, module in sorted(sys.modules.items())
            if name.startswith("fencedlock") and module is not None
        ]
        everywhere: dict[Any, Any] = {
            fencedlock.clock.now_seconds: now_seconds,
            owners.current_owner: current_owner,
            owners.new_claim_id: new_claim_id,
            owners.new_client_id: _random_hex,
            interrupts.make_mutex: Mutex,
        }
        for module in (*library, *modules):
            for name, value in list(vars(module).items()):
                replacement = (
                    everywhere.get(value) if callable(value) and _hashable(value) else None
                )
                if replacement is not None:
                    patches.set(module, name, replacement)
            if getattr(module, "time", None) is not None and module is not fencedlock.clock:
                patches.set(module, "time", TIME)
            if getattr(module, "secrets", None) is not None:
                patches.set(module, "secrets", _SECRETS)
            if getattr(module, "random", None) is random and module not in modules:
                patches.set(module, "random", _RANDOM)
        from fencedlock.primitives.rlock import RLock

        patches.set(RLock, "_owner", staticmethod(current_owner))
        for module in (waiting, cancellation):
            patches.set(module, "Bell", Bell)
        for module in library:
            if getattr(module, "Worker", None) is threads.Worker and module is not threads:
                patches.set(module, "Worker", Worker)
            if getattr(module, "SimpleQueue", None) is SimpleQueue:
                patches.set(module, "SimpleQueue", Queue)
        patches.set(interrupts.Event, "wait", _wait_for_event)
        yield patches


class Patches:
    """Attributes that are set, and set back at the end."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        self._before.append((target, name, vars(target)[name]))
        setattr(target, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        while self._before:
            target, name, value = self._before.pop()
            setattr(target, name, value)


def _hashable(value: Any) -> bool:
    return type(value).__hash__ is not None


@contextmanager
def inside(world: World) -> Iterator[None]:
    """Make this the world in which the simulated system works."""
    _worlds.append(world)
    try:
        yield
    finally:
        _worlds.pop()
