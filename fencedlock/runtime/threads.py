"""Background threads that an exception from a signal handler can't keep from running."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable

from fencedlock.clock import Deadline
from fencedlock.runtime.interrupts import Event

_births: set[threading.Lock] = set()
"""A mutex for each thread that was asked for and does not run yet. The thread releases it."""

_ending: bool = False
"""True once the interpreter is about to end."""

BIRTH_SECONDS: float = 5.0
"""The longest time, in seconds, that the end of the interpreter waits for a thread to begin."""


def finish_births() -> None:
    """Wait until each worker that was asked for runs, because the interpreter is about to end.

    From now on, a thread that starts a worker waits until it runs. Daemon threads, such as the
    workers themselves, can't start any, because nobody waits for them.

    Early patch releases of Python 3.11, such as Debian's 3.11.2, free the memory of a thread that
    has not begun, and the thread uses it when it begins. Then the process is killed by SIGSEGV.
    """
    global _ending
    _ending = True
    deadline = Deadline(BIRTH_SECONDS)
    for birth in list(_births):
        birth.acquire(timeout=deadline.left())


def forget_births() -> None:
    """Forget the threads that the original of this process was about to start, and its end."""
    global _ending
    _ending = False
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
                if _ending and threading.current_thread().daemon:
                    raise RuntimeError("can't start new thread: the interpreter ends")
                _thread.start_new_thread(self._begin, (birth,))
            except BaseException:
                _births.discard(birth)
                raise
            # If an interrupt comes before this line, the next call starts a second thread, which
            # finds the role taken and ends.
            self._asked = True
            if _ending:
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
