"""What all locks have in common. The client does all I/O."""

from __future__ import annotations

import math
import operator
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from fencedlock.clock import now_seconds
from fencedlock.core.claims import Hold
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import LeaseState, checked_max_hold, checked_ttl
from fencedlock.errors import AcquireTimeoutError, FencedLockError, NotOwnedError
from fencedlock.runtime.acquiring import acquire
from fencedlock.runtime.callbacks import Callbacks, LossCallback, RiskCallback, SafetyCallback
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.holding import lost_event, raise_if_lost, renew, set_depth
from fencedlock.runtime.home import Home, default_home
from fencedlock.runtime.owners import Dropped, Owner, current_owner
from fencedlock.runtime.process import become_own, own
from fencedlock.runtime.releasing import release
from fencedlock.runtime.resources import HandleSettings
from fencedlock.runtime.with_statement import WithStatement
from fencedlock.token import FencingToken

FOR_EVER = math.inf

MOST_CLOCK_SECONDS = 2**63 / 1e9
"""The longest time, in seconds, that CPython can count in nanoseconds. It refuses a longer timeout
before it checks anything else about it.
"""


class NamedLock(WithStatement):
    """What all locks have in common: a lock that threads, processes and hosts share by its name."""

    _fair: ClassVar[bool]

    def _owner(self) -> Owner:
        """Return the owner that acquires and releases at this moment."""
        raise NotImplementedError

    def __init__(
        self,
        name: str,
        *,
        client: Home | None = None,
        ttl: float | None = None,
        max_hold: float | None = None,
        on_lost: LossCallback | None = None,
        on_at_risk: RiskCallback | None = None,
        on_safe: SafetyCallback | None = None,
    ) -> None:
        self._client = default_home() if client is None else client
        self._ttl = None if ttl is None else checked_ttl(ttl)
        self._callbacks = Callbacks(on_lost, on_at_risk, on_safe).checked()
        table = self._client._table
        lease_seconds = self._ttl or table.ttl
        self._max_hold = checked_max_hold(max_hold, lease_seconds)
        self._settings = HandleSettings(
            self, table.resource(name), lease_seconds, self._max_hold, self._fair
        )
        self._prepare()

    def _prepare(self) -> None:
        """Make what a class of locks needs besides. Called once, at the end of the construction."""

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._settings.resource.name

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Acquire the lock."""
        raise NotImplementedError

    def release(self, *, keep: float = 0.0) -> None:
        """Release the lock."""
        raise NotImplementedError

    def within(self, timeout: float) -> Within:
        """Return a context manager that acquires the lock within ``timeout`` seconds.

        ``with lock.within(5) as token:`` raises AcquireTimeoutError if the lock is not free in
        time, and otherwise behaves like ``with lock as token:``. A timeout of 0 makes one attempt.
        Raises ValueError or OverflowError if the timeout is not valid.
        """
        seconds_to_wait(True, timeout)
        return Within(self, timeout)

    def __enter__(self) -> FencingToken:
        self.acquire()
        try:
            return self._entered()
        except BaseException:  # an interrupt, after which there will be no __exit__
            self.release()
            raise

    def _entered(self) -> FencingToken:
        """Note which hold a ``with`` statement has entered, and return its token."""
        owner = self._owner()
        hold = self._settings.resource.holds.get(owner.id) or self._owned()
        if owner.thread is None:
            owner = current_owner()
        entering, owner.entering = owner.entering, None
        if entering is not None:
            entering.hold = hold
        return hold.fencing_token

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
        hold, depth = None, 0
        try:
            hold = self._settings.resource.holds.get(self._owner().id)
            if hold is not None:
                depth = hold.depth
                if exit_ and (entered := exit_[0].hold) is not hold and entered is not None:
                    self._raise_if_others(entered)
            self.release()
        except FencedLockError as ours:
            if error is None:
                raise
            error.add_note(f"besides: {ours}")
        except BaseException:
            # An interrupt came before the release began.
            if hold is None or (self._hold() is hold and hold.depth == depth):
                self.release()
            raise
        finally:
            if exit_:
                exit_.pop().hold = None

    def _raise_if_others(self, entered: Hold) -> None:
        """Raise LockLostError if the present hold is not that of whom a statement has entered."""

    def owned(self) -> bool:
        """Return True if the caller holds the lock: this thread or task, or of a Lock this handle.

        It stays true if the lease is lost, until the last release. :meth:`ensure_held` tells
        whether the lease is valid. No network I/O.
        """
        return self._is_owned()

    @property
    def depth(self) -> int:
        """The number of times that the caller has to release the lock, 0 if it does not hold it."""
        return self._recursion_count()

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
        return self._held().fencing_token

    @property
    def abandoned(self) -> bool:
        """True if the holder before this thread did not release the lock, and its lease ended.

        In this case, repair what that holder may have left half done. Raises NotOwnedError if this
        thread does not hold the lock.
        """
        return self._held().abandoned

    @property
    def lost(self) -> threading.Event:
        """The event that is set when the lease is lost.

        It belongs to this thread's hold. In a thread that does not hold the lock, it belongs to the
        latest hold of this handle, so that a thread that watches over the holder can wait for it.
        Each outermost hold has a new event.
        """
        hold = self._hold_around() or self._settings.latest
        return threading.Event() if hold is None else lost_event(hold)

    def remaining(self) -> float:
        """Return the seconds left of the lease by the local clock, or 0 if it is lost.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        return self._held().remaining(now_seconds())

    def ensure_held(self) -> None:
        """Raise LockLostError if the lease has ended, by the local clock or by the server's answer.

        Does no network I/O. Raises NotOwnedError if this thread does not hold the lock.
        """
        raise_if_lost(self._settings.state, self._held())

    def renew(self, ttl: float | None = None) -> None:
        """Renew the lease now, so that it lasts ``ttl`` seconds from now on.

        Without ``ttl``, the lease keeps its length. Leases are renewed in the background anyway.
        Call this if you need a longer lease, because the code that follows stops the whole process
        for a long time.

        Raises NotOwnedError if this thread does not hold the lock, LockLostError if the lease was
        lost, ConfigurationError if the ttl is not valid, and BackendError if the server refuses or
        does not answer.
        """
        hold = self._held()
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
        settings = {"ttl": self._ttl, "max_hold": self._max_hold, **self._callbacks._asdict()}
        return _make_handle, (type(self), self.name, self._client, settings)

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
            acquire(settings, self._owner(), FOR_EVER, None)
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
        return None if hold is None or hold.state is LeaseState.RELEASED else hold

    def _hold_around(self) -> Hold | None:
        """Return the caller's hold, or of a task also the hold of its thread.

        The thread has acquired it before it began to run the loop, so it is around all that the
        loop does.
        """
        hold = self._hold()
        thread = self._owner().thread
        if hold is None and thread is not None:
            hold = self._settings.resource.holds.get(thread.id)
        return None if hold is None or hold.state is LeaseState.RELEASED else hold

    def _held(self) -> Hold:
        hold = self._hold_around()
        return self._owned() if hold is None else hold

    def _owned(self, otherwise: str = "") -> Hold:
        hold = self._hold()
        if hold is None:
            words = otherwise or f"this {self._owner().kind} does not hold the lock"
            raise NotOwnedError(f"{words} ({self.name!r}){self._who_else()}", lock=self.name)
        return hold

    def _who_else(self) -> str:
        """Return which other owner of this process holds the lock, for the text of an error."""
        held = self._held_here()
        if held is None:
            return ""
        kind = held.owner.kind
        words = f": {held.owner.name()} of this process holds it, and only the {kind} that took it "
        words += "may release it"
        if kind == "handle":
            return words
        return (
            f"{words}. A framework may run parts of one request in several threads or tasks: a "
            "fencedlock.Lock belongs to its handle, and any of them may release it"
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


class Within(WithStatement):
    """A ``with`` statement that acquires a lock in limited time: see :meth:`NamedLock.within`."""

    def __init__(self, lock: NamedLock, timeout: float) -> None:
        self._lock = lock
        self._timeout = timeout
        self._settings = lock._settings
        self._leave = lock._leave

    def __enter__(self) -> FencingToken:
        if not self._lock.acquire(timeout=self._timeout):
            name = self._lock.name
            raise AcquireTimeoutError(
                f"lock {name!r} was not free within {self._timeout:g} s", lock=name
            )
        try:
            return self._lock._entered()
        except BaseException:  # as in NamedLock.__enter__
            self._lock.release()
            raise


def _make_handle(
    cls: type[NamedLock], name: str, client: Home, settings: dict[str, Any]
) -> NamedLock:
    return cls(name, client=client, **settings)


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


def seconds_to_wait(blocking: bool, timeout: float) -> float:
    """Return the seconds to wait, infinity for -1, after the checks of ``threading.RLock.acquire``.

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
    if not blocking:
        return 0.0
    return FOR_EVER if timeout == -1 else float(timeout)
