"""The detection that this process is a copy of another one, however the copy was made.

A copy has the same client ids, the same sockets and the same holds as its original, but none of its
threads. Python's own ``os.fork`` calls a hook of ours. A fork in C does not: uWSGI forks its
workers that way by default. So all code that makes a claim or sends a call reads ``own[0]`` first,
and calls :func:`become_own` if it is 0.
"""

from __future__ import annotations

import _thread
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Protocol

from fencedlock.runtime.interrupts import make_mutex
from fencedlock.runtime.threads import forget_births

ctypes: ModuleType | None = None
# Python 3.13 and newer need ctypes after a fork in C. It is imported here, because no call of this
# library imports anything.
if hasattr(_thread, "_ThreadHandle"):
    with suppress(ImportError):
        ctypes = import_module("ctypes")

_MADV_WIPEONFORK = 18
"""The ``madvise`` option for memory that the kernel empties in a child, whoever forks and by
whatever call. Linux 4.14 and newer have it.
"""


class _Mark(Protocol):
    """A mark that tells whether this process is the one that set it: ``mark[0]`` is 0 in a copy."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...


class _MarkByPid:
    """A mark for systems without memory that the kernel empties. It compares the process id."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, place: int, /) -> int:
        return int(self._pid == os.getpid())

    def __setitem__(self, place: int, value: int, /) -> None:
        self._pid = os.getpid() if value else 0


def _make_mark() -> _Mark:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _MarkByPid()
    return page


own: _Mark = _make_mark()
"""``own[0]`` is 0 while this process is a copy that has not become a process of its own yet.

Reading it takes 20 ns. A call of ``os.getpid()`` takes 160 ns.
"""
own[0] = 1

_in_child: dict[str, list[Callable[[], object]]] = {
    "mutexes": [],  # first, because what follows may enter them
    "owners": [],
    "transports": [],
    "clients": [],  # last, because clients claim anew, for new owners and by new transports
}
"""What is done in a child, by the part that it is about, in this order."""

_in_child["mutexes"].append(forget_births)
_becoming = make_mutex()

PATIENCE_SECONDS = 5.0
"""The longest time, in seconds, to wait for another thread of the copy that runs
:func:`become_own`. It is limited, because the original may have held the mutex when it was copied,
and then nobody releases it.
"""


class CopiedProcessError(RuntimeError):
    """A call was about to use what this process inherited from its original.

    This is a connection or a claim. The error never leaves the library.
    """


def in_child(part: str, action: Callable[[], object]) -> None:
    """Have an action called in each forked child, after those of its part registered before.

    An action must not take a mutex that another thread may have held.
    """
    _in_child[part].append(action)


def become_own() -> None:
    """Make this process one of its own, by the actions of :func:`in_child`, if it is a new copy."""
    if own[0]:
        return
    taken = _becoming.acquire(timeout=PATIENCE_SECONDS)
    try:
        if not own[0]:  # the hook of Python's fork was not called, so it was a fork in C
            _keep_threads()
            _become_child()
    finally:
        if taken:
            _becoming.release()


def _become_child() -> None:
    for actions in _in_child.values():
        for action in actions:
            action()
    own[0] = 1


def _keep_threads() -> None:
    """Keep Python's Thread objects for the threads of the original alive for ever.

    From Python 3.13 on, the destructor of a Thread object detaches a thread that nobody has joined.
    Python's own fork tells the objects that their threads do not exist any more. After a fork in C,
    detaching such a thread reads memory that is gone, and kills the process.
    """
    if ctypes is None:
        return
    # These are all Thread objects, also of threads that have ended. threading.enumerate() would
    # take a mutex.
    for thread in list(getattr(threading, "_dangling", ())):
        # A list that refers to them would not do, because it would be emptied at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thread))


def _after_fork_in_child() -> None:
    own[0] = 0  # it is 0 already if the kernel has emptied it
    _becoming._at_fork_reinit()
    _become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
