"""RLock and FairLock: the semantics of ``threading.RLock``. No I/O here: the client does it."""

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
"""What CPython can count in nanoseconds: beyond it, a timeout is refused before anything else about
it is looked at.
"""


LossCallback = Callable[["RLock", str], object]
"""Is told of a lock that was lost, and why."""

_FOR_EVER = math.inf
_RELEASED = LeaseState.RELEASED


class RLock:
    """A reentrant lock that threads, processes and hosts share by its name; it behaves like ``threading.RLock``.

    ``name`` is what the lock protects, as ``"orders/42"``. ``client`` is where the lock lives;
    without it, the default one of
    :func:`fencedlock.configure` or of the environment variable ``FENCEDLOCK_URL``. ``ttl`` is the
    lease in seconds: how long others wait after this process died; the client's by default. While
    the process lives, a background thread renews the lease. ``on_lost(lock, reason)`` is called on
    a thread of its own when the lease is lost nevertheless.

    All handles of one name and client are one lock: nesting across them re-enters. No order among
    waiters is promised: see
    :class:`FairLock`.

    Raises ConfigurationError, before any I/O, for a name, ttl or client that can't be.
    """

    _fair: ClassVar[bool] = False

    _owner: Callable[[], Owner] = staticmethod(current_owner)
    """Returns who acquires and releases at this moment."""

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
        """The lock's name."""
        return self._settings.resource.name

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Take the lock, or go one level deeper if this thread holds it; True if it is held now.

        ``timeout`` is in seconds, -1 means for ever; 0, like ``blocking=False``, is one try.
        ``cancel`` lets somebody else end the waiting.

        Raises AcquireCancelledError when cancelled; BackendUnavailableError when the server does
        not answer within the timeout (without one, within the client's ``outage_timeout``);
        BackendError when it refuses; LockLostError when this thread still holds a lease that was
        lost; and for arguments what ``threading`` raises: ValueError, OverflowError, TypeError.
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
        """Go up one level; the last one frees the lock and hands it to the next waiter.

        Raises NotOwnedError if this thread does not hold the lock, and LockLostError if the lease
        ended before. A server that is down raises nothing: the background goes on trying until the
        lease has ended.
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
        except BaseException:  # an interrupt: there will be no __exit__
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
        """The end of a ``with`` statement. ``exit_`` has what is told when it never runs."""
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
        """True if anybody holds the lock. Asks the server, unless this process holds it.

        Raises BackendError.
        """
        return self._held_here() is not None or self.info().locked

    @property
    def token(self) -> FencingToken:
        """The token of this thread's hold, the same from the outermost acquire to the last release.

        Raises NotOwnedError.
        """
        return self._owned().fencing_token

    @property
    def abandoned(self) -> bool:
        """True when the holder before this thread did not release: its lease ended.

        Repair what it may have left half done.

        Raises NotOwnedError.
        """
        return self._owned().abandoned

    @property
    def lost(self) -> threading.Event:
        """Set when the lease is lost.

        Of this thread's hold; in a thread that holds nothing, of the latest hold of this handle.

        So a thread that watches over the holder can wait for it. Each outermost hold has a new one.
        """
        hold = self._hold() or self._settings.latest
        return threading.Event() if hold is None else lost_event(hold)

    def remaining(self) -> float:
        """Seconds of lease left by the local clock; 0 when it is lost. No network.

        Raises NotOwnedError.
        """
        return self._owned().remaining(now_seconds())

    def ensure_held(self) -> None:
        """Raise LockLostError if the lease has ended by the local clock or the server's word.

        No network.

        Raises NotOwnedError if this thread does not hold the lock.
        """
        raise_if_lost(self._settings.state, self._owned())

    def renew(self, ttl: float | None = None) -> None:
        """Renew the lease now, for ``ttl`` seconds from now on; without it, for as long as before.

        Leases are renewed in the background anyway: this is for a body that is about to stop the
        whole process for long, and wants a longer lease first. Raises NotOwnedError, LockLostError,
        ConfigurationError for a bad ttl, and BackendError if the server refuses or does not answer.
        """
        hold = self._owned()
        renew(self._settings.state, hold, hold.lease_seconds if ttl is None else checked_ttl(ttl))

    def info(self) -> LockInfo:
        """The holder and the queue, by the server's knowledge. Raises BackendError."""
        return self._client.inspect(self.name)

    def __repr__(self) -> str:
        hold = self._held_here()
        cls = type(self)
        state, owner, count = (
            ("unlocked", 0, 0) if hold is None else ("locked", hold.claim_id, hold.depth)
        )
        return f"<{state} fencedlock.{cls.__qualname__} object name={self.name!r} owner={owner} count={count} at {id(self):#x}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_handle, (type(self), self.name, self._client, self._ttl, self._on_lost)

    def __copy__(self) -> Self:
        return self  # all handles of a name and client are one lock anyway

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # and not one of another client, which would wait for what this one holds

    # --- what threading.Condition asks of a lock

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
        """Nothing is left to do in a forked child: the client has forgotten all holds of the parent."""

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
        """Which thread of this process holds the lock instead, for an error's words."""
        held = self._held_here()
        if held is None:
            return ""
        native_id = held.owner.holder.rpartition("/")[2]
        names = [
            thread.name
            for thread in threading.enumerate()
            if str(getattr(thread, "native_id", None)) == native_id
        ]
        who = f"thread {names[0]!r}" if names else f"the thread with native id {native_id}"
        return (
            f": {who} of this process holds it, and only the thread that took it may release it. A "
            "framework may run parts of one request in several threads"
        )

    def _held_here(self) -> Hold | None:
        """The hold of any thread of this process whose lease is good."""
        if not own[0]:
            become_own()
        now = now_seconds()
        for hold in list(self._settings.resource.holds.values()):
            if hold.state is not LeaseState.LOST and now < hold.deadline:
                return hold
        return None


class FairLock(RLock):
    """An :class:`RLock` that serves its waiters in the order in which they came, among those that can be reached.

    A place in the queue is kept by beats. A waiter whose process has died, or is cut off, is passed
    over at once. A non-fair ``RLock`` of the same name may overtake only when a lease has ended
    without a release.
    """

    _fair = True


def _make_handle(
    cls: type[RLock], name: str, client: Home, ttl: float | None, on_lost: LossCallback | None
) -> RLock:
    return cls(name, client=client, ttl=ttl, on_lost=on_lost)


def _leave_condition(frame: FrameType) -> None:
    """Take a thread whose ``Condition.wait()`` raises, by this frame, out of the condition's list.

    ``wait()`` puts it in before it releases the lock, and does not take it out when that raises,
    nor when the lock can't be taken again: the next ``notify()`` would be spent on it.
    """
    condition, waiter = frame.f_locals.get("self"), frame.f_locals.get("waiter")
    if isinstance(condition, threading.Condition) and waiter is not None:
        try:
            condition._waiters.remove(waiter)  # type: ignore[attr-defined]
        except ValueError:
            pass  # it was notified


def _checked_timeout(blocking: bool, timeout: float) -> float:
    """Seconds to wait, after the checks of ``threading.RLock.acquire`` with its words."""
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
