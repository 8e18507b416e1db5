"""Threads, events and mutexes that an exception from a signal handler can't break.

Python runs signal handlers in the main thread, between any two steps of whatever it does.
``threading.Event`` and ``threading.Condition`` are written in Python: interrupted at a bad moment
they keep their mutex, and every other thread that uses them waits for ever.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any


class InterruptibleMutex:
    """A reentrant mutex that a ``with`` statement never leaves taken.

    From Python 3.14 on, the interpreter runs signal handlers after the C code that enters a
    ``with`` statement has returned, and before the statement is entered: an exception that comes
    there leaves ``threading.RLock`` taken for ever. It came so in two of three interruptions of a
    loop.
    """

    __slots__ = ("__weakref__", "_at_fork_reinit", "_is_owned", "_lock", "acquire", "release")

    def __init__(self) -> None:
        lock: Any = threading.RLock()
        self._lock = lock
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release
        self._is_owned: Callable[[], bool] = lock._is_owned
        self._at_fork_reinit: Callable[[], None] = lock._at_fork_reinit

    def __enter__(self) -> bool:
        lock = self._lock
        before = lock._recursion_count()
        try:
            lock.acquire()
        except BaseException:
            if lock._recursion_count() > before:
                lock.release()
            raise
        return True

    if TYPE_CHECKING:

        def __exit__(self, *error: object) -> None: ...

    else:
        # The C lock's own: a function in Python could be interrupted at its beginning.
        __exit__ = property(attrgetter("_lock.__exit__"))


_needs_help = sys.version_info >= (3, 14)


def make_mutex() -> Any:
    """A reentrant mutex for ``with`` statements: a ``threading.RLock`` where the interpreter leaves none taken.

    Reentrant, because a destructor or a signal handler may run in the middle of anything.
    """
    return (
        InterruptibleMutex()
        if _needs_help and hasattr(threading.RLock(), "_recursion_count")
        else threading.RLock()
    )


class Event(threading.Event):
    """A ``threading.Event`` without a mutex, so that no interrupted ``wait()`` can make ``set()`` hang."""

    def __init__(self) -> None:
        self._flag = False
        self._sleepers: set[threading.Lock] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {'set' if self._flag else 'unset'}>"

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        for sleeper in self._sleepers.copy():
            try:
                sleeper.release()
            except RuntimeError:
                pass  # it was woken already

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._flag:
            return True
        sleeper = threading.Lock()
        sleeper.acquire()
        try:
            self._sleepers.add(sleeper)
            if self._flag:
                return True
            if timeout is None:
                return sleeper.acquire()
            # A waiter that was woken answers True although the event may have been cleared since,
            # as with threading.Event.
            return (
                sleeper.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)) or self._flag
            )
        finally:
            self._sleepers.discard(sleeper)

    def _at_fork_reinit(self) -> None:
        self._sleepers = set()


class Worker:
    """A background thread, started on first need.

    ``threading.Thread.start()`` waits for its thread by an event; interrupted there, it leaves a
    thread that never begins. So that call is made in another thread, which runs no signal handler,
    and which the interpreter starts in one step.
    """

    def __init__(self, run: Callable[[], object], name: str) -> None:
        self._run = run
        self._name = name
        self._asked = False
        self._role = threading.Lock()
        self._thread: threading.Thread | None = None
        self.running: bool = False
        """True from the beginning of ``run`` on; it stays true."""
        self.ended: Event = Event()
        """Set when ``run`` has returned."""

    def start(self) -> None:
        """Start the thread, unless that is done.

        May be called again after an exception from a signal handler.

        Raises RuntimeError where the system, or an interpreter that ends, starts no thread.
        """
        if not self._asked:
            _thread.start_new_thread(self._begin, ())
            # An interrupt before this starts a second thread, which finds the role taken.
            self._asked = True

    @property
    def started(self) -> bool:
        """True once it runs, or is about to."""
        return self._asked or self.running

    def is_current(self) -> bool:
        """True in the thread itself."""
        return threading.current_thread() is self._thread

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for its end, at most so long; False if it goes on.

        The thread itself does not wait; nobody waits for one never started.
        """
        return not self.started or self.is_current() or self.ended.wait(timeout_seconds)

    def _begin(self) -> None:
        if self._role.acquire(blocking=False):
            try:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            except RuntimeError:  # no second thread can be started now: the first one will do
                self._work()

    def _work(self) -> None:
        self.running = True
        try:
            self._run()
        finally:
            self.ended.set()
