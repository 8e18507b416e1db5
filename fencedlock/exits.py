"""The end of a ``with`` statement, which an exception of a signal handler must not skip.

A function written in Python can be interrupted at its very beginning, where it can't catch anything yet. For ``__exit__`` that would mean
a lock that stays held by a thread that has left it, and whose beats go on. ``threading.RLock`` has no such moment, because it is written
in C.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from fencedlock.identity import this_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from fencedlock.hold import Hold
    from fencedlock.locks import RLock


class Dropped(weakref.ref["partial[None]"]):
    """Goes to the heartbeat when the ``__exit__`` of a ``with`` statement is dropped without having run, by one step of the interpreter."""

    __slots__ = ("hold",)

    hold: Hold | None
    """What the statement has entered; None if it did not get so far, and once it has left."""


class ExitOfWith:
    """Gives each ``with`` statement an ``__exit__`` of its own.

    The statement looks it up before it enters, keeps it, and drops it at its end, whatever happens.
    """

    def __get__(self, lock: RLock | None, cls: type[RLock]) -> Callable[..., None]:
        if lock is None:
            return _exit_of_class  # as contextlib.ExitStack calls it
        exit_: list[Dropped] = []
        leave = partial(lock._leave, exit_)
        dropped = Dropped(leave, lock._terms.table.heartbeat.dropped)
        dropped.hold = None
        exit_.append(dropped)
        this_thread.owner.entering = dropped
        return leave


def _exit_of_class(lock: RLock, *error: Any) -> None:
    lock._leave([], *error)
