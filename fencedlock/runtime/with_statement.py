"""The end of a ``with`` statement, which an exception of a signal handler must not skip.

A function that is written in Python can be interrupted at its very beginning, where it can't catch
anything yet. If that happened to ``__exit__``, the thread would have left the lock, but the lock
would stay held and its beats would go on. ``threading.RLock`` does not have this problem, because
it is written in C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fencedlock.runtime.owners import Dropped, current_owner
from fencedlock.runtime.resources import HandleSettings


class _Lock(Protocol):
    """The lock that the ``with`` statement enters."""

    _settings: HandleSettings

    def _leave(
        self,
        exit_: list[Dropped],
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ExitOfWith:
    """A descriptor that gives each ``with`` statement an ``__exit__`` of its own.

    The statement looks it up before it enters the lock, keeps it, and drops it at its end, whatever
    happens. If it is dropped without having run, the heartbeat learns of that.
    """

    def __get__(self, lock: _Lock | None, cls: type[_Lock]) -> Callable[..., None]:
        if lock is None:
            return _exit_of_class  # contextlib.ExitStack looks it up in the class
        exit_: list[Dropped] = []
        leave = partial(lock._leave, exit_)
        dropped = Dropped(leave, lock._settings.state.heartbeat.dropped)
        dropped.hold = None
        exit_.append(dropped)
        current_owner().entering = dropped
        return leave


def _exit_of_class(lock: _Lock, *error: Any) -> None:
    lock._leave([], *error)


class WithStatement:
    """Gives a class the end of its ``with`` statement."""

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __exit__ = ExitOfWith()
