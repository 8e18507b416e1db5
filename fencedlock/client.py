"""The client: one lock server as a program sees it."""

from __future__ import annotations

import atexit

# Redis-py imports it, and in an exit handler it can't be imported for the first time
import concurrent.futures.thread  # noqa: F401
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

from fencedlock.backends.urls import without_password
from fencedlock.clock import Deadline, now_seconds
from fencedlock.core.backend import BackendFactory
from fencedlock.core.info import LockInfo
from fencedlock.errors import ConfigurationError
from fencedlock.primitives.locks import FairLock as _FairLock
from fencedlock.primitives.locks import LossCallback
from fencedlock.primitives.locks import RLock as _RLock
from fencedlock.runtime.lock_table import CLOSE_SECONDS, LockTable
from fencedlock.runtime.process import become_own, in_child, own
from fencedlock.token import FencingToken

logger: logging.Logger = logging.getLogger("fencedlock")


MOST_FLOOR = 2**52
"""Tokens above it would soon be greater than what Redis' scripts count exactly."""


class Recipe(NamedTuple):
    """What makes a client again, in another process: it travels with pickled locks, and the URL's password with it."""

    make: Callable[[str, dict[str, Any], str], Client]
    """The function that makes it, of the other fields."""
    url: str
    settings: dict[str, Any]
    origin: str
    """Told by no other client; kept by the one that is made again. In one process it finds the
    client that a pickled lock belongs to.
    """

    def __repr__(self) -> str:
        return f"Recipe({without_password(self.url)!r})"


class Client:
    """A connection to a lock server, and all that this process holds and waits for there.

    Made by :func:`fencedlock.connect`. Its factory methods mirror those of ``multiprocessing``'s
    contexts. Two background threads and two connections at most serve all its locks; they start on
    first need. Close it, or use it in a ``with`` statement.
    """

    def __init__(
        self,
        make_backend: BackendFactory,
        *,
        ttl: float,
        outage_timeout: float,
        on_lost: LossCallback | None,
        recipe: Recipe | None,
    ) -> None:
        self.recipe: Recipe | None = recipe
        """What makes the same client elsewhere; None if it was made from a ready object."""
        self._table = LockTable(
            make_backend,
            ttl=ttl,
            outage_timeout=outage_timeout,
            on_lost=on_lost,
            make_handle=weakref.WeakMethod(self.RLock),
        )
        _tables.add(self._table)
        _end_with_celery_child()

    @property
    def id(self) -> str:
        """Begins the ids of all claims of this client; another one in a forked child."""
        become_own()
        return self._table.client_id

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._table.closed

    def __repr__(self) -> str:
        source = repr(without_password(self.recipe.url)) if self.recipe else "a ready client object"
        return f"<{'closed ' if self.closed else ''}fencedlock.Client of {source}, id {self.id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.recipe is None:
            raise TypeError(
                "can't pickle a lock or client that was made from a ready client object: connect "
                "with a URL, or make the lock in the other process"
            )
        return self.recipe.make, (self.recipe.url, self.recipe.settings, self.recipe.origin)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy with connections and threads of its own would wait for what this one holds.
        return self

    def RLock(  # noqa: N802 - as multiprocessing names it
        self, name: str, *, ttl: float | None = None, on_lost: LossCallback | None = None
    ) -> _RLock:
        """A :class:`fencedlock.RLock` of this client."""
        return _RLock(name, client=self, ttl=ttl, on_lost=on_lost)

    def FairLock(  # noqa: N802
        self, name: str, *, ttl: float | None = None, on_lost: LossCallback | None = None
    ) -> _FairLock:
        """A :class:`fencedlock.FairLock` of this client."""
        return _FairLock(name, client=self, ttl=ttl, on_lost=on_lost)

    def ping(self) -> float:
        """Ask the server once; how many seconds its answer took. The first call also connects.

        On etcd a majority of the members has answered. Raises BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        backend = self._table.backend
        asked_at = now_seconds()
        backend.ping(backend.request_timeout_seconds)
        return now_seconds() - asked_at

    def locks(self, prefix: str = "") -> Iterator[LockInfo]:
        """All locks that are held or waited for, of any client, whose names begin with ``prefix``.

        Each is read as it is when the iteration comes to it. Raises BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        seen: set[str] = set()
        backend = None
        # Who goes on in a copy of the process looks again, through connections of its own.
        while backend is not self._table.backend:
            backend = self._table.backend
            for name in backend.lock_names(prefix):
                if name in seen:
                    continue
                seen.add(name)
                info = self.inspect(name)
                if info.locked or info.waiters:
                    yield info
                become_own()
                if backend is not self._table.backend:
                    break

    def inspect(self, name: str) -> LockInfo:
        """Who holds the lock and who waits for it, by the server's knowledge.

        Raises BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        backend = self._table.backend
        return backend.bind(name).inspect(backend.request_timeout_seconds)

    def force_release(self, name: str) -> FencingToken | None:
        """Take the lock from whoever holds it; the token of the ended hold, None if it was free.

        The holder learns of it at its next beat; until then it works on, so check tokens at the
        store. The next holder's ``abandoned`` is true. Raises BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        bound, seconds = self._table.backend.bind(name), self._table.backend.request_timeout_seconds
        info = bound.inspect(seconds)
        if info.token is None or not bound.force_release(info.token, seconds):
            return None
        logger.warning(
            "fencedlock: lock %r was taken from %s, token %d, by force_release",
            name,
            info.holder,
            info.token,
        )
        return FencingToken(name, info.token)

    def raise_floor(self, token: FencingToken) -> None:
        """Let the next token of ``token.lock`` be greater than this one, for all clients.

        For a store that has seen higher tokens than the lock server issues, as after a move to
        another server, or a restore from a backup: the message of the store's
        :class:`StaleTokenError` tells the number. For an operator's hand, and not for a handler of
        that error: a holder that is truly stale must not become the newest. Who holds the lock
        keeps its token.

        Raises ConfigurationError for a token that leaves no room above it, BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        if not isinstance(token, FencingToken):
            raise TypeError(
                f"a floor is a FencingToken, for it is of one lock, not {type(token).__name__}: "
                f"FencingToken(name, {token!r:.40})"
            )
        if (
            isinstance(token.value, bool)
            or not isinstance(token.value, int)
            or not 0 <= token.value <= MOST_FLOOR
        ):
            raise ConfigurationError(
                f"a floor must be from 0 to {MOST_FLOOR}, not {token}: is it a token of this lock?"
            )
        backend = self._table.backend
        backend.bind(token.lock).raise_floor(int(token), backend.request_timeout_seconds)

    def close(self) -> None:
        """Release what this client holds, end its waiting (AcquireCancelledError), its threads and its connections.

        Closing twice does nothing. A later acquire raises ConfigurationError.
        """
        self._table.close()

    def __del__(self) -> None:
        # No handle is left either. Nothing may be waited for here: the garbage collector can call
        # at any moment.
        if hasattr(self, "_table") and own[0]:
            self._table.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_tables: weakref.WeakSet[LockTable] = weakref.WeakSet()
"""All that may have something to release: a table outlives its client while its threads run."""


def _become_children() -> None:
    for table in list(_tables):
        if not table.closed:
            table.become_child()


def _end_with_celery_child() -> None:
    """Have everything released when a process of Celery's pool ends: it does so by ``os._exit``, which runs no exit handlers."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_release_all, weak=False, dispatch_uid="fencedlock")


@atexit.register
def _release_all(**_: object) -> None:
    """Release what is held, of all clients at the same time: one server that does not answer must not delay the others."""
    become_own()
    deadline = Deadline(CLOSE_SECONDS)
    tables = list(_tables)
    for table in tables:
        table.begin_exit(deadline)
    for table in tables:
        table.finish_exit(deadline)


in_child(_become_children)
