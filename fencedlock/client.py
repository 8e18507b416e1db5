"""The client: one lock server as a program sees it, and the holds and waits of this process."""

from __future__ import annotations

# Redis-py imports this module, and a first import in an exit handler fails.
import concurrent.futures.thread  # noqa: F401
import logging
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

from fencedlock.backends.targets import without_password
from fencedlock.clock import now_seconds
from fencedlock.core.backend import BackendFactory
from fencedlock.core.info import LockInfo
from fencedlock.errors import ConfigurationError
from fencedlock.primitives.lock import Lock as _Lock
from fencedlock.primitives.rlock import FairLock as _FairLock
from fencedlock.primitives.rlock import RLock as _RLock
from fencedlock.runtime import at_exit
from fencedlock.runtime.callbacks import (
    Callbacks,
    LossCallback,
    RequestCallback,
    RiskCallback,
    SafetyCallback,
)
from fencedlock.runtime.lock_table import LockTable
from fencedlock.runtime.process import become_own, own
from fencedlock.token import FencingToken

logger: logging.Logger = logging.getLogger("fencedlock")


MOST_FLOOR = 2**52
"""The highest floor. Tokens above it would soon exceed what Redis' scripts can count exactly."""


MOST_REASON = 1000
"""The most characters of the reason of a request for a lock."""


class Recipe(NamedTuple):
    """The means to make a client again in another process.

    A pickled lock or client contains it, and with it the URL's password.
    """

    make: Callable[[str, dict[str, Any], str], Client]
    """The function that makes the client from the other fields."""
    url: str
    settings: dict[str, Any]
    origin: str
    """Identifies the client: no other one has it, but a client that is made again keeps it.

    Within one process it finds the client that an unpickled lock belongs to.
    """

    def __repr__(self) -> str:
        return f"Recipe({without_password(self.url)!r})"


class Client:
    """A connection to a lock server, and everything that this process holds or waits for there.

    Clients are made by :func:`fencedlock.connect`. The methods :meth:`Client.RLock` and
    :meth:`Client.FairLock` make its locks, like those of a context of ``multiprocessing``. At most
    two background threads and two connections serve all locks of a client; calls in flight may need
    further connections. Threads and connections start when they are first needed. Close the client,
    or use it in a ``with`` statement, which closes it.
    """

    def __init__(
        self,
        make_backend: BackendFactory,
        *,
        ttl: float,
        outage_timeout: float,
        callbacks: Callbacks,
        recipe: Recipe | None,
    ) -> None:
        self.recipe: Recipe | None = recipe
        """The means to make this client elsewhere; None if it was made from a ready object."""
        self._table = LockTable(
            make_backend,
            ttl=ttl,
            outage_timeout=outage_timeout,
            callbacks=callbacks,
            make_handle=weakref.WeakMethod(self.RLock),
        )
        at_exit.tables.add(self._table)
        at_exit.end_with_celery_child()

    @property
    def id(self) -> str:
        """The beginning of the ids of all claims of this client; a forked child has its own."""
        become_own()
        return self._table.client_id

    @property
    def closed(self) -> bool:
        """True after :meth:`close` was called."""
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
        # A copy with its own connections and threads would wait for the locks that this one holds.
        return self

    def RLock(  # noqa: N802 - as multiprocessing names it
        self,
        name: str,
        *,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
        on_requested: RequestCallback | None = None,
    ) -> _RLock:
        """Return a :class:`fencedlock.RLock` of this client; the arguments are the same."""
        return _RLock(
            name,
            client=self,
            ttl=ttl,
            max_hold=max_hold,
            on_lost=on_lost,
            on_at_risk=on_at_risk,
            on_safe=on_safe,
            on_requested=on_requested,
        )

    def Lock(  # noqa: N802
        self,
        name: str,
        *,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
        on_requested: RequestCallback | None = None,
    ) -> _Lock:
        """Return a :class:`fencedlock.Lock` of this client."""
        return _Lock(
            name,
            client=self,
            ttl=ttl,
            max_hold=max_hold,
            on_lost=on_lost,
            on_at_risk=on_at_risk,
            on_safe=on_safe,
            on_requested=on_requested,
        )

    def FairLock(  # noqa: N802
        self,
        name: str,
        *,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
        on_requested: RequestCallback | None = None,
    ) -> _FairLock:
        """Return a :class:`fencedlock.FairLock` of this client; the arguments are the same."""
        return _FairLock(
            name,
            client=self,
            ttl=ttl,
            max_hold=max_hold,
            on_lost=on_lost,
            on_at_risk=on_at_risk,
            on_safe=on_safe,
            on_requested=on_requested,
        )

    def attach(
        self,
        secret: str,
        name: str,
        *,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
        on_requested: RequestCallback | None = None,
    ) -> _Lock:
        """Go on holding the lock of this name that was detached with this secret.

        Returns the :class:`fencedlock.Lock` that holds it now, with the token of the hold that was
        detached. Release it at the end. ``with client.Lock(name).attaching(secret) as token:`` does
        both. To hold it as an :class:`fencedlock.RLock`, or in a task, call ``attach(secret)`` of
        such a lock. The other arguments and the errors are those of :class:`fencedlock.Lock` and
        :meth:`fencedlock.Lock.attach`.
        """
        lock = self.Lock(
            name,
            ttl=ttl,
            max_hold=max_hold,
            on_lost=on_lost,
            on_at_risk=on_at_risk,
            on_safe=on_safe,
            on_requested=on_requested,
        )
        lock.attach(secret)
        return lock

    def ping(self) -> float:
        """Send one request to the server, and return how many seconds its answer took.

        The first call also connects. On etcd the answer means that a majority of the members has
        answered. Raises BackendError, and ConfigurationError if the client is closed.
        """
        become_own()
        self._table.raise_if_closed()
        backend = self._table.backend
        asked_at = now_seconds()
        backend.ping(backend.request_timeout_seconds)
        return now_seconds() - asked_at

    def locks(self, prefix: str = "") -> Iterator[LockInfo]:
        """Iterate over the locks that any client holds or waits for.

        Only locks whose names begin with ``prefix`` are included. Each is read when the iteration
        comes to it. Raises BackendError, and ConfigurationError if the client is closed.
        """
        become_own()
        self._table.raise_if_closed()
        seen: set[str] = set()
        backend = None
        # If the process was forked meanwhile, the child has another backend and starts again with
        # its own connections.
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
        """Return who holds the lock and who waits for it, as the server knows it.

        Raises BackendError, and ConfigurationError if the client is closed.
        """
        become_own()
        self._table.raise_if_closed()
        backend = self._table.backend
        return backend.bind_lock(name).inspect(backend.request_timeout_seconds)

    def force_release(self, name: str) -> FencingToken | None:
        """Take the lock from its holder, and return the token of that hold; None if it was free.

        The holder learns of it at its next beat and goes on working until then, so check tokens in
        the store. The ``abandoned`` attribute of the next holder's lock is True. Raises
        BackendError, and ConfigurationError if the client is closed.
        """
        become_own()
        self._table.raise_if_closed()
        bound, seconds = (
            self._table.backend.bind_lock(name),
            self._table.backend.request_timeout_seconds,
        )
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

    def request_release(self, name: str, reason: str) -> bool:
        """Ask the holder of the lock to let go of it. Returns False if nobody holds it.

        Nothing is forced: the holder finds the reason in :attr:`fencedlock.RLock.wanted`, and its
        ``on_requested(lock, reason)`` is called, when its next beat is answered. That is within a
        third of its lease, and on Redis at once if its client has waited for a lock before. It does
        not learn of it if its lease is not renewed any more, because of ``max_hold``. The reason is
        for people and programs, and has 1 to 1000 characters. A later request replaces it, and the
        callback is called again if its reason is another one.

        Raises BackendError, and ConfigurationError if the reason is not valid or the client is
        closed.
        """
        become_own()
        self._table.raise_if_closed()
        if not isinstance(reason, str) or not 0 < len(reason) <= MOST_REASON:
            raise ConfigurationError(
                f"a reason must be a str of 1 to {MOST_REASON} characters, not {reason!r:.80}"
            )
        try:
            reason.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"a reason must be valid Unicode, not {reason!r:.80}"
            ) from None
        backend = self._table.backend
        return backend.bind_lock(name).request_release(reason, backend.request_timeout_seconds)

    def raise_floor(self, token: FencingToken) -> None:
        """Make the server issue only tokens greater than this one for the lock ``token.lock``.

        It applies to the tokens of all clients. Use it when a store has seen higher tokens than the
        lock server issues, for example after a move to another server or a restore from a backup.
        The message of the store's :class:`StaleTokenError` tells the number.

        An operator should call it by hand. Never call it in a handler of that error, because a
        holder that is really stale must not become the newest one. The present holder of the lock
        keeps its token.

        Raises ConfigurationError if the token's value is not an int from 0 to ``2**52``, which
        leaves room for later tokens, or if the client is closed. Raises TypeError if ``token`` is
        not a FencingToken. Raises BackendError.
        """
        become_own()
        self._table.raise_if_closed()
        if not isinstance(token, FencingToken):
            raise TypeError(
                "a floor belongs to one lock and must be a FencingToken, not "
                f"{type(token).__name__}: FencingToken(name, {token!r:.40})"
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
        backend.bind_lock(token.lock).raise_floor(int(token), backend.request_timeout_seconds)

    def close(self) -> None:
        """Release all locks that this client holds, and end its threads and connections.

        Acquisitions that wait raise AcquireCancelledError, later ones ConfigurationError. Closing
        waits at most 5 seconds for a server that does not answer. Closing twice does nothing.
        """
        self._table.close()

    async def aclose(self) -> None:
        """Do what :meth:`close` does, without blocking the event loop that runs."""
        from asyncio import to_thread  # imported since the client was made

        await to_thread(self.close)

    def __del__(self) -> None:
        # The handles are gone as well, because they refer to the client. This must not wait for
        # anything, because the garbage collector can call it at any moment.
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
