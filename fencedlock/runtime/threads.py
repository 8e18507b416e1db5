"""Threads, events and mutexes that an exception from a signal handler can't break.

Python runs signal handlers in the main thread, between any two steps of the code that runs there.
``threading.Event`` and ``threading.Condition`` are written in Python. If they are interrupted at a
bad moment, they keep their mutex, and every other thread that uses them waits for ever.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fencedlock.clock import Deadline


class InterruptibleMutex:
    """A reentrant mutex that a ``with`` statement never leaves taken.

    From Python 3.14 on, the interpreter runs signal handlers after the C code that enters a
    ``with`` statement has returned, and before the statement is entered. An exception at that
    moment leaves a ``threading.RLock`` taken for ever. This happened in two of three interruptions
    of a loop.
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
        # This is the method of the C lock, because a function in Python could be interrupted at its
        # beginning.
        __exit__ = property(attrgetter("_lock.__exit__"))


_needs_help = sys.version_info >= (3, 14)


def make_mutex() -> Any:
    """Return a reentrant mutex that an interrupted ``with`` statement does not leave taken.

    Before Python 3.14 this is a ``threading.RLock``. The mutex is reentrant, because a destructor
    or a signal handler may run in the middle of anything.
    """
    return (
        InterruptibleMutex()
        if _needs_help and hasattr(threading.RLock(), "_recursion_count")
        else threading.RLock()
    )


class Event(threading.Event):
    """A ``threading.Event`` without a mutex. No interrupted ``wait()`` can make ``set()`` hang."""

    def __init__(self) -> None:
        self._flag = False
        self._sleepers: set[threading.Lock] = set()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: "
            f"{'set' if self._flag else 'unset'}>"
        )

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
            # A waiter that was woken returns True even if the event has been cleared since, as with
            # threading.Event.
            return (
                sleeper.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)) or self._flag
            )
        finally:
            self._sleepers.discard(sleeper)

    def _at_fork_reinit(self) -> None:
        self._sleepers = set()


_births: set[threading.Lock] = set()
"""A mutex for each thread that was asked for and does not run yet. The thread releases it."""

_last_thread = 0
"""The identifier of the thread that ends this interpreter, once it does."""


BIRTH_SECONDS = 5.0
"""The longest time, in seconds, that the end of the interpreter waits for a thread to begin."""


def finish_births() -> None:
    """Wait until each worker that was asked for runs, because the interpreter is about to end.

    From now on no other thread can start a worker, and this thread waits for those that it starts.

    Early patch releases of Python 3.11, such as Debian's 3.11.2, free the memory of a thread that
    has not begun, and the thread uses it when it begins. Then the process is killed by SIGSEGV.
    """
    global _last_thread
    _last_thread = threading.get_ident()
    deadline = Deadline(BIRTH_SECONDS)
    for birth in list(_births):
        birth.acquire(timeout=deadline.left())


def forget_births() -> None:
    """Forget the threads that the original of this process was about to start."""
    _births.clear()


class Worker:
    """A background thread that starts when it is first needed.

    ``threading.Thread.start()`` waits for its thread by an event. If it is interrupted there, the
    thread never begins. So that call is made in another thread, which runs no signal handlers, and
    which the interpreter starts in one step.
    """

    def __init__(self, run: Callable[[], object], name: str) -> None:
        self._run = run
        self._name = name
        self._asked = False
        self._role = threading.Lock()
        self._thread: threading.Thread | None = None
        self.running: bool = False
        """True once ``run`` has begun. It stays true after the end of ``run``."""
        self.ended: Event = Event()
        """An event that is set when ``run`` has ended."""

    def start(self) -> None:
        """Start the thread, unless it was started before.

        This may be called again after an exception from a signal handler. Raises RuntimeError if
        the system, or an interpreter that ends, starts no thread.
        """
        if not self._asked:
            birth = threading.Lock()
            birth.acquire()
            try:
                _births.add(birth)
                if _last_thread not in (0, threading.get_ident()):
                    raise RuntimeError("can't start new thread: the interpreter ends")
                _thread.start_new_thread(self._begin, (birth,))
            except BaseException:
                _births.discard(birth)
                raise
            # If an interrupt comes before this line, the next call starts a second thread, which
            # finds the role taken and ends.
            self._asked = True
            if _last_thread:
                birth.acquire(timeout=BIRTH_SECONDS)

    @property
    def started(self) -> bool:
        """True once the thread runs, or is about to run."""
        return self._asked or self.running

    def is_current(self) -> bool:
        """Return True if the calling thread is this thread."""
        return threading.current_thread() is self._thread

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the thread has ended or until the timeout. Return False if it still runs.

        Does not wait, and returns True, if the thread was never started or is the calling thread.
        """
        return not self.started or self.is_current() or self.ended.wait(timeout_seconds)

    def _begin(self, birth: threading.Lock) -> None:
        done = not self._role.acquire(blocking=False)
        try:
            if not done:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()  # returns when the thread runs
                done = True
        except RuntimeError:
            pass  # no second thread can be started now, so this one does the work
        finally:
            _births.discard(birth)
            birth.release()
        if not done:
            self._work()

    def _work(self) -> None:
        self.running = True
        try:
            self._run()
        finally:
            self.ended.set()
