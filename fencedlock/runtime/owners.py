"""Who holds: clients, claims, and threads that are told apart even when the system recycles their ids."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import threading
import time
import weakref
from functools import cache, partial

from fencedlock.core.claims import Hold
from fencedlock.runtime.process import in_child


@cache
def _host() -> str:
    return ascii(socket.gethostname())[1:-1]


class _Life:
    """Referred to by one thread's local storage and by nothing else: it ends when the thread does."""

    __slots__ = ("__weakref__",)


class Dropped(weakref.ref[partial[None]]):
    """Goes to the heartbeat when the ``__exit__`` of a ``with`` statement is dropped without having run, by one step of the interpreter."""

    __slots__ = ("hold",)

    hold: Hold | None
    """What the statement has entered; None if it did not get so far, and once it has left."""


class Owner:
    """One thread of one process.

    It may outlive the thread, in the frames of a traceback say; its life does not.
    """

    __slots__ = ("_life", "entering", "holder", "number")

    def __init__(self, life: _Life) -> None:
        self.entering: Dropped | None = None
        """Of the ``with`` statement that is about to be entered."""
        self.number: int = next(_numbers)
        self.holder: str = f"{_host()}/{os.getpid()}/{threading.get_native_id()}"
        """Host, process and native thread id, for people; ASCII, so that it is as long in bytes."""
        self._life = weakref.ref(life)

    def alive(self) -> bool:
        """False once the thread has ended."""
        return self._life() is not None


_numbers = itertools.count(1)


class _ThisThread(threading.local):
    """Made anew by each thread that looks into it. Thread ids are recycled, so each thread gets a number of its own once."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Be another owner from now on, as the one thread of a forked child is."""
        self._life = _Life()
        self.owner: Owner = Owner(self._life)


this_thread: _ThisThread = _ThisThread()
"""``this_thread.owner`` is the owner of the calling thread."""


def new_client_id() -> str:
    """64 random bits in hexadecimal: a client's id, and the first part of the ids of its claims."""
    return secrets.token_hex(8)


def new_claim_id(client_id: str, owner_number: int) -> str:
    """An id that nobody can guess and nobody repeats: the client's id, the owner's number, and a number drawn for this claim alone.

    A message that tells of a grant has to bring it, so nobody else can write one. A snapshot of a virtual machine that is resumed twice
    may repeat the system's random numbers, but not at the same nanosecond.
    """
    return f"{client_id}/{owner_number}/{int.from_bytes(os.urandom(8)) ^ time.time_ns():x}"


in_child(this_thread.begin)
