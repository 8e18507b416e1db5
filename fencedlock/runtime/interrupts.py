"""Mutexes and events that an exception of a signal handler can't break, and how to tell it.

Python runs signal handlers in the main thread, between any two steps of the code that runs there.
``threading.Event`` and ``threading.Condition`` are written in Python. If they are interrupted at a
bad moment, they keep their mutex, and every other thread that uses them waits for ever.

Time limits of job queues (Celery's, RQ's, ``signal.alarm``) raise an ordinary ``Exception``,
sometimes a ``TimeoutError``, from a signal handler. They may do so in the middle of anything that
the main thread does, including a socket call. Only an exception that the socket call itself raised
is an I/O error. An exception that a handler raised belongs to the program, and has to leave the
library unchanged.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol


def raised_by_handler(error: BaseException) -> BaseException | None:
    """Return the exception of a signal handler behind this error, or None if there is none.

    It is this error itself, or one that a library in between has turned into this error.
    """
    if _passed_a_handler(error.__traceback__):
        return error
    # An exception that was already being handled when our call began is a context of the error too.
    # It was caught in a frame that is further out than all frames that the error has passed.
    frames = list(_frames(error.__traceback__))
    seen = {id(error)}
    found = error.__cause__ or error.__context__
    while found is not None and id(found) not in seen and found.__traceback__ is not None:
        seen.add(id(found))
        if found.__traceback__.tb_frame not in frames:
            return None
        if _passed_a_handler(found.__traceback__):
            return found
        found = found.__cause__ or found.__context__
    return None


def innermost_module(error: BaseException) -> str:
    """Return the name of the module that raised the exception, or "" if it is not known."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", ""))


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _passed_a_handler(trace: TracebackType | None) -> bool:
    """Return True if one of the frames is that of a signal handler.

    Python calls a handler with the frame that it interrupted, so that frame is among the local
    variables of the handler. It is the last frame of Python code before the handler. Frames of
    compiled code may stand between the two, so all earlier frames are compared.
    """
    before: list[FrameType] = []
    for frame in _frames(trace):
        if any(_was_given(frame, other) for other in before):
            return True
        before.append(frame)
    return False


def _was_given(frame: FrameType, other: FrameType) -> bool:
    return any(
        value is other or (isinstance(value, tuple) and any(item is other for item in value))
        for value in frame.f_locals.values()
    )


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


class Sleeper(Protocol):
    """Waits for an event: the lock that a thread has acquired twice, or anything like it."""

    def release(self) -> None:
        """Wake whoever waits."""


class Event(threading.Event):
    """A ``threading.Event`` without a mutex. No interrupted ``wait()`` can make ``set()`` hang."""

    def __init__(self) -> None:
        self._flag = False
        self._sleepers: set[Sleeper] = set()

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

    def call(self, sleeper: Sleeper) -> None:
        """Call ``sleeper.release()`` when the event is set, at once if it is set already."""
        self._sleepers.add(sleeper)
        if self._flag:
            sleeper.release()

    def call_no_more(self, sleeper: Sleeper) -> None:
        """Forget a sleeper that was given to :meth:`call`."""
        self._sleepers.discard(sleeper)

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
