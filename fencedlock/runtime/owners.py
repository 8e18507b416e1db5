"""Owners and ids. Two threads are two owners, even if the system reuses the id of an old thread."""

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
    """An object that only the local storage of one thread refers to. It ends with the thread."""

    __slots__ = ("__weakref__",)


class Dropped(weakref.ref[partial[None]]):
    """A weak reference to the ``__exit__`` of a ``with`` statement.

    It goes to the heartbeat if the ``__exit__`` is dropped without having run.
    """

    __slots__ = ("hold",)

    hold: Hold | None
    """The hold that the statement has entered. None before that, and after the statement has left
    it.
    """


class Owner:
    """One thread of one process.

    The object may exist longer than the thread, for example in the frames of a traceback.
    :meth:`alive` tells whether the thread still runs.
    """

    __slots__ = ("_life", "entering", "holder", "id")

    def __init__(self, life: _Life) -> None:
        self.entering: Dropped | None = None
        """The reference for the ``with`` statement that this thread is about to enter."""
        self.id: int = next(_numbers)
        self.holder: str = f"{_host()}/{os.getpid()}/{threading.get_native_id()}"
        """The host, process id and native thread id, for people to read. It is ASCII, so it has as
        many bytes as characters.
        """
        self._life = weakref.ref(life)

    def alive(self) -> bool:
        """Return False once the thread has ended."""
        return self._life() is not None


_numbers = itertools.count(1)


class _ThisThread(threading.local):
    """The owner of each thread, in an object that Python makes anew in each thread.

    Each owner gets a number of its own, because thread ids are used again.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Make a new owner for this thread. The only thread of a forked child needs one."""
        self._life = _Life()
        self.owner: Owner = Owner(self._life)


this_thread: _ThisThread = _ThisThread()
"""``this_thread.owner`` is the owner of the calling thread."""


def current_owner() -> Owner:
    """Return the owner of the calling thread."""
    return this_thread.owner


def new_client_id() -> str:
    """Return a new client id: 64 random bits in hexadecimal.

    The ids of the claims of the client begin with it.
    """
    return secrets.token_hex(8)


def new_claim_id(client_id: str, owner_id: int) -> str:
    """Return a new claim id: the id of the client, the number of the owner, and a random number.

    A message that tells of a grant has to contain the id, so it must not be possible to guess it.
    The time is mixed in because a snapshot of a virtual machine that is resumed twice may repeat
    the random numbers of the system.
    """
    return f"{client_id}/{owner_id}/{int.from_bytes(os.urandom(8)) ^ time.time_ns():x}"


in_child("owners", this_thread.begin)
