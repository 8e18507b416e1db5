"""Owners and ids. Threads are told apart even if the system uses the id of an old thread again."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

from fencedlock.core.claims import Hold
from fencedlock.runtime.process import in_child

MOST_TASK_NAME = 40
"""The number of characters of a task's name that others are told."""


@cache
def _host() -> str:
    return ascii(socket.gethostname())[1:-1]


class _Life:
    """An object that only the local storage of one thread refers to. It ends with the thread."""

    __slots__ = ("__weakref__",)


class Dropped(weakref.ref[partial[None]]):
    """A weak reference that goes to the heartbeat if an ``__exit__`` is dropped without having run.

    It is the ``__exit__`` of a ``with`` statement.
    """

    __slots__ = ("hold",)

    hold: Hold | None
    """The hold that the statement has entered. None before that, and after the statement has left
    it.
    """


class Owner:
    """Whoever claims and holds locks: one thread of one process, one task, or one handle.

    The object may exist longer than the thread or task, for example in the frames of a traceback.
    :meth:`alive` tells.
    """

    __slots__ = ("entering", "holder", "id", "thread")

    kind: str
    """What it is, in a word."""

    def __init__(self, holder: str) -> None:
        self.entering: Dropped | None = None
        """The reference for the ``with`` statement that this owner is about to enter."""
        self.id: int = next(_numbers)
        self.holder: str = holder
        """Host, process id and native thread id, for people to read.

        The name of a task follows. The text is ASCII, so its length in bytes is its length.
        """
        self.thread: Owner | None = self
        """The owner for the thread in which it runs. None for a handle, which any thread uses."""

    def alive(self) -> bool:
        """Return False once the owner has ended."""
        raise NotImplementedError

    def name(self) -> str:
        """Return how an error calls it."""
        raise NotImplementedError


class ThreadOwner(Owner):
    """One thread of one process."""

    __slots__ = ("_life", "_native_id")

    kind = "thread"

    def __init__(self, life: _Life) -> None:
        self._native_id = threading.get_native_id()
        super().__init__(f"{_host()}/{os.getpid()}/{self._native_id}")
        self._life = weakref.ref(life)

    def alive(self) -> bool:
        return self._life() is not None

    def name(self) -> str:
        for thread in threading.enumerate():
            if getattr(thread, "native_id", None) == self._native_id:
                return f"thread {thread.name!r}"
        return f"the thread with native id {self._native_id}"


class TaskOwner(Owner):
    """One task of an event loop."""

    __slots__ = ("_name", "_task")

    kind = "task"

    def __init__(self, task: Any) -> None:
        self._name: str = task.get_name()
        self._task = weakref.ref(task)
        shown = ascii(self._name)[1:-1].replace(" ", "_")[:MOST_TASK_NAME]
        thread = this_thread.owner
        super().__init__(f"{thread.holder}/{shown}")
        self.thread: Owner | None = thread

    def alive(self) -> bool:
        task = self._task()
        return task is not None and not task.done()

    def name(self) -> str:
        return f"task {self._name!r}"


class HandleOwner(Owner):
    """A handle that owns what is acquired through it, in whatever thread."""

    __slots__ = ("_handle",)

    kind = "handle"

    def __init__(self, handle: object) -> None:
        super().__init__(this_thread.owner.holder)
        self.thread: Owner | None = None
        self._handle = weakref.ref(handle)

    def here(self) -> HandleOwner:
        """Return this owner, after noting for people that the calling thread acquires for it."""
        self.holder: str = current_owner().holder
        return self

    def alive(self) -> bool:
        return self._handle() is not None

    def name(self) -> str:
        return "another handle"


_numbers = itertools.count(1)


class _ThisThread(threading.local):
    """Makes an owner for each thread that uses it, because thread ids are used again."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Make a new owner for this thread. The only thread of a forked child needs one."""
        self._life = _Life()
        self.owner: Owner = ThreadOwner(self._life)


this_thread: _ThisThread = _ThisThread()
"""``this_thread.owner`` is the owner of the calling thread."""


def _no_loop() -> Any:
    """Return None, because no event loop can run before asyncio is imported."""


_get_running_loop: Callable[[], Any] = _no_loop
_current_task: Callable[[Any], Any]
_owners_of_tasks: weakref.WeakKeyDictionary[Any, TaskOwner] = weakref.WeakKeyDictionary()
"""The owners of tasks of a class that takes no attributes."""


def learn_of_loops() -> None:
    """Know event loops from now on. A client does so, whose backend imports asyncio anyway."""
    global _get_running_loop, _current_task
    _current_task = import_module("asyncio.tasks").current_task
    _get_running_loop = import_module("asyncio.events")._get_running_loop


def current_owner() -> Owner:
    """Return the owner that calls: the current task if an event loop runs, otherwise the thread.

    All tasks of a loop share a thread. If the thread were the owner, they would re-enter each
    other's locks.
    """
    loop = _get_running_loop()
    if loop is not None:
        task = _current_task(loop)
        if task is not None:
            return _owner_of(task)
    return this_thread.owner


def _owner_of(task: Any) -> TaskOwner:
    owner: TaskOwner | None = getattr(task, "_fencedlock_owner", None) or _owners_of_tasks.get(task)
    if owner is None:
        owner = TaskOwner(task)
        try:
            task._fencedlock_owner = owner
        except AttributeError:
            _owners_of_tasks[task] = owner
    return owner


def new_client_id() -> str:
    """Return a new client id: 64 random bits in hexadecimal.

    The ids of the claims of the client begin with it.
    """
    return secrets.token_hex(8)


def new_claim_id(client_id: str, owner_id: int) -> str:
    """Return a new claim id: the id of the client, the id of the owner, and a random number.

    A message that tells of a grant has to contain the id, so it must not be possible to guess it.
    The time is mixed in because a snapshot of a virtual machine that is resumed twice may repeat
    the random numbers of the system.
    """
    return f"{client_id}/{owner_id}/{int.from_bytes(os.urandom(8)) ^ time.time_ns():x}"


in_child("owners", this_thread.begin)
