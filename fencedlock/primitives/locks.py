"""RLock and FairLock, with the semantics of ``threading.RLock``. The client does all I/O."""

from __future__ import annotations

import math
import operator
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fencedlock.clock import now_seconds
from fencedlock.core.claims import Hold
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import LeaseState, checked_ttl
from fencedlock.errors import FencedLockError, NotOwnedError
from fencedlock.runtime.acquiring import acquire
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.exits import ExitOfWith
from fencedlock.runtime.holding import (
    deepen,
    lost_event,
    raise_if_lost,
    renew,
    set_depth,
    undeepen,
)
from fencedlock.runtime.home import Home, default_home
from fencedlock.runtime.owners import Dropped, Owner, current_owner
from fencedlock.runtime.process import become_own, own
from fencedlock.runtime.releasing import release
from fencedlock.runtime.resources import HandleSettings
from fencedlock.token import FencingToken

MOST_CLOCK_SECONDS = 2**63 / 1e9
"""The longest time, in seconds, that CPython can count in nanoseconds. It refuses a longer timeout
before it checks anything else about it.
"""


LossCallback = Callable[["RLock", str], object]
"""The type of ``on_lost``: a function that receives the lost lock and the reason."""

_FOR_EVER = math.inf
_RELEASED = LeaseState.RELEASED


class RLock:
    """A reentrant lock that threads, processes and hosts share by its name.

    It behaves like ``threading.RLock``.

    ``name`` says what the lock protects, for example ``"orders/42"``. ``client`` is the client of
    the server on which the lock is kept. Without it, the lock uses the default client of
    :func:`fencedlock.configure` or of the environment variable ``FENCEDLOCK_URL``. ``ttl`` is the
    length of the lease in seconds, which is how long others wait after this process has died.
    Without it, the ``ttl`` of the client applies. While the process lives, a background thread
    renews the lease. If the lease is lost nevertheless, ``on_lost(lock, reason)`` is called on a
    separate thread.

    All handles of one name and client are one lock, and nesting across them re-enters it. The order
    in which waiters get the lock is not defined. Use :class:`FairLock` if the order matters.

    Raises ConfigurationError, before any I/O, if the name, the ttl or the client is not valid.
    """

    _fair: ClassVar[bool] = False

    _owner: Callable[[], Owner] = staticmethod(current_owner)
    """Returns the owner that acquires and releases at this moment."""

    def __init__(
        self,
        name: str,
        *,
        client: Home | None = None,
        ttl: float | None = None,
        on_lost: LossCallback | None = None,
    ) -> None:
        self._client = default_home() if client is None else client
        self._ttl = None if ttl is None else checked_ttl(ttl)
        self._on_lost = on_lost
        table = self._client._table
        self._settings = HandleSettings(
            self, table.resource(name), self._ttl or table.ttl, self._fair
        )

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._settings.resource.name

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Acquire the lock, or go one level deeper if this thread already holds it.

        Returns True if the lock is held now, and False if it was not free in time. ``timeout`` is
        in seconds, and -1 means to wait for ever. A timeout of 0 makes one attempt, like
        ``blocking=False``. ``cancel`` lets another thread end the waiting.

        Raises AcquireCancelledError if the acquisition is cancelled, or if the client is closed
        meanwhile. Raises BackendUnavailableError if the server does not answer within the timeout
        (without a timeout, within the ``outage_timeout`` of the client), and BackendError if the
        server refuses. Raises LockLostError if this thread still holds a lease that was lost.
        Raises ConfigurationError if the client was closed before. For invalid arguments it raises
        what ``threading`` raises: ValueError, OverflowError or TypeError.
        """
        timeout_seconds = (
            _FOR_EVER if blocking and timeout == -1 else _checked_timeout(blocking, timeout)
        )
        if not own[0]:
            become_own()
        owner, settings = self._owner(), self._settings
        hold = settings.resource.holds.get(owner.id)
        if hold is not None and hold.state is not _RELEASED:
            deepen(settings.state, hold)
            return True
        return acquire(settings, owner, timeout_seconds, cancel)

    def release(self) -> None:
        """Release one level. The last release frees the lock and hands it to the next waiter.

        Raises NotOwnedError if this thread does not hold the lock, and LockLostError if the lease
        ended before. If the server is down, nothing is raised, and a background thread tries again
        until the lease has ended.
        """
        if not own[0]:
            become_own()
        settings = self._settings
        hold = settings.resource.holds.get(self._owner().id)
        if hold is None:
            hold = self._owned("cannot release un-acquired lock")
        if hold.depth > 1:
            undeepen(settings.state, hold)
        else:
            release(settings.state, hold)

    def __enter__(self) -> FencingToken:
        self.acquire()
        try:
            hold = self._owned()
            owner = self._owner()
            entering, owner.entering = owner.entering, None
            if entering is not None:
                entering.hold = hold
            return hold.fencing_token
        except BaseException:  # an interrupt, after which there will be no __exit__
            self.release()
            raise

    if TYPE_CHECKING:

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None: ...

    else:
        __exit__ = ExitOfWith()

    def _leave(
        self,
        exit_: list[Dropped],
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End a ``with`` statement.

        ``exit_`` contains the reference that goes to the heartbeat if ``__exit__`` never runs.
        """
        before = None
        try:
            before = self._recursion_count()
            self.release()
        except FencedLockError as ours:
            if error is None:
                raise
            error.add_note(f"besides: {ours}")
        except BaseException:
            # An interrupt came before the release began.
            if before is None or (before and self._recursion_count() == before):
                self.release()
            raise
        finally:
            if exit_:
                exit_.pop().hold = None

    def locked(self) -> bool:
        """Return True if anybody holds the lock. Asks the server, unless this process holds it.

        Raises BackendError if the server refuses or does not answer.
        """
        return self._held_here() is not None or self.info().locked

    @property
    def token(self) -> FencingToken:
        """The fencing token of this thread's hold.

        It stays the same from the outermost acquire to the last release. Raises NotOwnedError if
        this thread does not hold the lock.
        """
        return self._owned().fencing_token

    @property
    def abandoned(self) -> bool:
        """True if the holder before this thread did not release the lock, and its lease ended.

        In this case, repair what that holder may have left half done. Raises NotOwnedError if this
        thread does not hold the lock.
        """
        return self._owned().abandoned

    @property
    def lost(self) -> threading.Event:
        """The event that is set when the lease is lost.

        It belongs to this thread's hold. In a thread that does not hold the lock, it belongs to the
        latest hold of this handle, so that a thread that watches over the holder can wait for it.
        Each outermost hold has a new event.
        """
        hold = self._hold() or self._settings.latest
        return threading.Event() if hold is None else lost_event(hold)

    def remaining(self) -> float:
        """Return the seconds left of the lease by the local clock, or 0 if it is lost.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        return self._owned().remaining(now_seconds())

    def ensure_held(self) -> None:
        """Raise LockLostError if the lease has ended, by the local clock or by the server's answer.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        raise_if_lost(self._settings.state, self._owned())

    def renew(self, ttl: float | None = None) -> None:
        """Renew the lease now, so that it lasts ``ttl`` seconds from now on.

        Without ``ttl``, the lease keeps its length. Leases are renewed in the background anyway.
        Call this if you need a longer lease, because the code that follows stops the whole process
        for a long time.

        Raises NotOwnedError if this thread does not hold the lock, LockLostError if the lease was
        lost, ConfigurationError if the ttl is not valid, and BackendError if the server refuses or
        does not answer.
        """
        hold = self._owned()
        renew(self._settings.state, hold, hold.lease_seconds if ttl is None else checked_ttl(ttl))

    def info(self) -> LockInfo:
        """Return the holder and the queue of the lock, as the server knows them.

        Raises BackendError if the server refuses or does not answer.
        """
        return self._client.inspect(self.name)

    def __repr__(self) -> str:
        hold = self._held_here()
        cls = type(self)
        state, owner, count = (
            ("unlocked", 0, 0) if hold is None else ("locked", hold.claim_id, hold.depth)
        )
        return (
            f"<{state} fencedlock.{cls.__qualname__} object name={self.name!r} owner={owner} "
            f"count={count} at {id(self):#x}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_handle, (type(self), self.name, self._client, self._ttl, self._on_lost)

    def __copy__(self) -> Self:
        return self  # all handles of a name and client are one lock anyway

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a lock of a copied client would wait for what this one holds

    # --- methods that threading.Condition calls

    def _is_owned(self) -> bool:
        return self._hold() is not None

    def _recursion_count(self) -> int:
        hold = self._hold()
        return 0 if hold is None else hold.depth

    def _release_save(self) -> int:
        try:
            hold = self._owned("cannot release un-acquired lock")
            depth = hold.depth
            release(self._settings.state, hold)
        except BaseException:
            _leave_condition(sys._getframe(1))
            raise
        return depth

    def _acquire_restore(self, depth: int) -> None:
        settings = self._settings
        try:
            acquire(settings, self._owner(), _FOR_EVER, None)
            set_depth(settings.state, self._owned(), depth)
        except BaseException:
            _leave_condition(sys._getframe(1))
            raise

    def _at_fork_reinit(self) -> None:
        """Do nothing in a forked child, where the client has forgotten the holds of the parent."""

    # ---

    def _hold(self) -> Hold | None:
        if not own[0]:
            become_own()
        hold = self._settings.resource.holds.get(self._owner().id)
        return None if hold is None or hold.state is _RELEASED else hold

    def _owned(self, otherwise: str = "this thread does not hold the lock") -> Hold:
        hold = self._hold()
        if hold is None:
            raise NotOwnedError(f"{otherwise} ({self.name!r}){self._who_else()}", lock=self.name)
        return hold

    def _who_else(self) -> str:
        """Return which other owner of this process holds the lock, for the text of an error."""
        held = self._held_here()
        if held is None:
            return ""
        return (
            f": {held.owner.name()} of this process holds it, and only the {held.owner.kind} that "
            "took it may release it. A framework may run parts of one request in several threads "
            "or tasks"
        )

    def _held_here(self) -> Hold | None:
        """Return the hold of any thread of this process whose lease is valid, or None."""
        if not own[0]:
            become_own()
        now = now_seconds()
        for hold in list(self._settings.resource.holds.values()):
            if hold.state is not LeaseState.LOST and now < hold.deadline:
                return hold
        return None


class FairLock(RLock):
    """An :class:`RLock` that serves waiters that can be reached in the order in which they came.

    Beats keep the place of a waiter in the queue. A waiter whose process has died, or is cut off,
    is passed over at once (on etcd, after a quarter of a second, once). An ``RLock`` of the same
    name, which is not fair, may overtake only if a lease has ended without a release, or between
    the reconnection of a waiter that was cut off and its next beat.
    """

    _fair = True


def _make_handle(
    cls: type[RLock], name: str, client: Home, ttl: float | None, on_lost: LossCallback | None
) -> RLock:
    return cls(name, client=client, ttl=ttl, on_lost=on_lost)


def _leave_condition(frame: FrameType) -> None:
    """Remove a thread whose ``Condition.wait()`` raises from the condition's list of waiters.

    ``frame`` is the frame of ``wait()``, which adds the thread to the list before it releases the
    lock. It does not remove the thread if the release raises, or if the lock can't be acquired
    again. The next ``notify()`` would then be spent on that thread.
    """
    condition, waiter = frame.f_locals.get("self"), frame.f_locals.get("waiter")
    if isinstance(condition, threading.Condition) and waiter is not None:
        try:
            condition._waiters.remove(waiter)  # type: ignore[attr-defined]
        except ValueError:
            pass  # the thread was notified


def _checked_timeout(blocking: bool, timeout: float) -> float:
    """Return the seconds to wait, after the checks of ``threading.RLock.acquire``.

    The errors have the same texts as there.
    """
    if not isinstance(timeout, float):
        timeout = operator.index(timeout)
    if math.isnan(timeout):
        raise ValueError("Invalid value NaN (not a number)")
    if abs(timeout) > MOST_CLOCK_SECONDS:
        raise OverflowError("timeout value is too large")
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0 and timeout != -1:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return float(timeout) if blocking else 0.0
