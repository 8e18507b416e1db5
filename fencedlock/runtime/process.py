"""Notices that this process is a copy of another one, however the copy was made.

A copy has the same client ids, the same sockets and the same holds as its original, but none of its
threads. Python's own ``os.fork`` tells us by a hook. A fork in C does not: uWSGI forks its workers
that way by default. So whoever makes a claim or sends a call looks at :data:`own` first, and calls
:func:`become_own` where it says no.
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

from fencedlock.runtime.threads import make_mutex

ctypes: ModuleType | None = None
# Python 3.13 and newer need it after a fork in C: imported here, because no call imports anything.
if hasattr(_thread, "_ThreadHandle"):
    with suppress(ImportError):
        ctypes = import_module("ctypes")

_MADV_WIPEONFORK = 18
"""Linux 4.14 and newer: the kernel empties such memory in a child, whoever forks and by whatever
call.
"""


class _Mark(Protocol):
    """Says whether this process is the one that set it: ``mark[0]`` is 0 in a copy."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, value: int, /) -> None: ...


class _MarkByPid:
    """For systems without memory that the kernel empties: compares the process id."""

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

Reading it takes 20 ns, ``os.getpid()`` 160.
"""
own[0] = 1

_in_child: dict[str, list[Callable[[], object]]] = {
    "mutexes": [],  # first, because what follows may enter them
    "owners": [],
    "transports": [],
    "clients": [],  # last, because clients claim anew, for new owners and by new transports
}
"""What is done in a child, by the part that it is about, in this order."""

_becoming = make_mutex()

PATIENCE_SECONDS = 5.0
"""Another thread of the copy that becomes its own is waited for so long; the mutex may also be one
that the original held.
"""


class CopiedProcessError(RuntimeError):
    """A call was about to be sent through what this process inherited from its original.

    It never leaves the library.
    """


def in_child(part: str, action: Callable[[], object]) -> None:
    """Have this action done in a child, among those of the same part: see the order above.

    Actions take no mutex that another thread may have held.
    """
    _in_child[part].append(action)


def become_own() -> None:
    """Make what this process inherited its own, if it is a copy and has not done so."""
    if own[0]:
        return
    taken = _becoming.acquire(timeout=PATIENCE_SECONDS)
    try:
        if not own[0]:  # Python's fork has told nobody, so it was a fork in C
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
    """Let what Python knows of the original's threads live for ever.

    From Python 3.13 on, the end of a Thread object detaches a thread that nobody has joined.
    Python's own fork tells the objects that there is no such thread any more. After a fork in C,
    detaching it reads memory that is gone, and kills the process.
    """
    if ctypes is None:
        return
    # All that exist, those that have ended too; enumerate() would take a mutex.
    for thread in list(getattr(threading, "_dangling", ())):
        # A list of them would be emptied at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thread))


def _after_fork_in_child() -> None:
    own[0] = 0  # it says so itself where the kernel empties it
    _becoming._at_fork_reinit()
    _become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
