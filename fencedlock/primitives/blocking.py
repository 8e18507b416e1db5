"""What all blocking locks have in common. The client does all I/O."""

from __future__ import annotations

import sys
import threading
from types import FrameType, TracebackType

from fencedlock.core.claims import Hold
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import checked_ttl
from fencedlock.errors import FencedLockError
from fencedlock.primitives.handle import Handle
from fencedlock.primitives.timeouts import FOR_EVER, seconds_to_wait
from fencedlock.runtime.acquiring import acquire
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.runtime.detaching import attach, detach
from fencedlock.runtime.holding import lost_event, renew, set_depth
from fencedlock.runtime.owners import Dropped, Owner, current_owner
from fencedlock.runtime.releasing import release
from fencedlock.runtime.with_statement import WithStatement
from fencedlock.token import FencingToken


class NamedLock(WithStatement, Handle):
    """A lock that threads, processes and hosts share by its name, and that blocks its thread."""

    def acquire(
        self, blocking: bool = True, timeout: float = -1, *, cancel: Cancellation | None = None
    ) -> bool:
        """Acquire the lock."""
        raise NotImplementedError

    def release(self, *, keep: float = 0.0) -> None:
        """Release the lock."""
        raise NotImplementedError

    def detach(self, *, ttl: float | None = None) -> str:
        """Let go of a held lock without releasing it, so that somebody else can go on holding it.

        Returns a secret. Whoever passes it to :meth:`attach`, to :meth:`attaching`, or to
        :meth:`fencedlock.Client.attach`, in this process or on another host, holds the lock with
        the same token. This works once. Until then nobody renews the lease. It lasts ``ttl``
        seconds from now on, and without ``ttl`` as long as the lease of this hold. etcd rounds that
        up to whole seconds, and to the least lease of its server. If nobody attaches the hold in
        time, the lock is free, and the next holder finds that it was :attr:`abandoned`. A ``with``
        statement whose body has detached the lock releases nothing, also if the body has attached
        it again.

        Who knows the secret can take the lock, so keep it out of logs. The server does not know it.

        Raises NotOwnedError if this thread does not hold the lock, LockLostError if the lease ended
        before, and ConfigurationError, and changes nothing, if the ttl is not valid or the lock is
        held more than once. Raises BackendError, and changes nothing, if the server refuses. Raises
        BackendUnavailableError if the server does not answer. Then the lock is not held any more,
        and a background thread releases it as soon as it can.
        """
        hold, lease_seconds = self._detachable(ttl)
        return detach(self._settings.state, hold, lease_seconds)

    def attach(self, secret: str) -> None:
        """Go on holding the lock that was detached with this secret. Release it as any other hold.

        The token is that of the hold that was detached, and the lease is that of this handle. For a
        ``with`` statement, see :meth:`attaching`.

        Raises NotOwnedError if the secret is that of another lock or was used before, if the lease
        has ended, or if this thread holds the lock. Raises BackendUnavailableError if the server
        does not answer within the ``outage_timeout`` of the client: then this client may try again,
        until the lease ends. Raises BackendError if the server refuses, ConfigurationError or
        AcquireCancelledError if the client is closed, and TypeError if the secret is no str.
        """
        self._raise_if_holding()
        attach(self._settings, self._attacher(), secret)

    def attaching(self, secret: str) -> Attaching:
        """Return a context manager that goes on with the hold of this secret, and releases it.

        ``with lock.attaching(secret) as token:`` raises what :meth:`attach` raises, and otherwise
        behaves like ``with lock as token:``.
        """
        return Attaching(self, secret)

    def _attacher(self) -> Owner:
        """Return the owner of a hold that is attached now."""
        return self._owner()

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
                    if entered.is_detaching:
                        return  # the present hold is none of this statement's
                    self._raise_if_others(entered)
            elif self._was_detached(exit_[0].hold if exit_ else None):
                return
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

    def _was_detached(self, entered: Hold | None) -> bool:
        """Return True if the body of a ``with`` statement that has entered this hold detached it.

        An ExitStack does not tell which hold it has entered.
        """
        if entered is None:
            latest = self._settings.latest
            entered = None if latest is None or latest.owner is not self._owner() else latest
        return entered is not None and entered.is_detaching

    def _raise_if_others(self, entered: Hold) -> None:
        """Raise LockLostError if the present hold is not that of whom a statement has entered."""

    def locked(self) -> bool:
        """Return True if anybody holds the lock. Asks the server, unless this process holds it.

        Raises BackendError if the server refuses or does not answer.
        """
        return self._held_here() is not None or self.info().locked

    @property
    def lost(self) -> threading.Event:
        """The event that is set when the lease is lost.

        It belongs to this thread's hold. In a thread that does not hold the lock, it belongs to the
        latest hold of this handle, so that a thread that watches over the holder can wait for it.
        Each outermost hold has a new event.
        """
        hold = self._hold_around() or self._settings.latest
        return threading.Event() if hold is None else lost_event(hold)

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

    # --- methods that threading.Condition calls

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


class _Statement(WithStatement):
    """A ``with`` statement that gets a lock in its own way, and releases it as any other."""

    def __init__(self, lock: NamedLock) -> None:
        self._lock = lock
        self._settings = lock._settings
        self._leave = lock._leave

    def _begin(self) -> None:
        """Get the lock."""
        raise NotImplementedError

    def __enter__(self) -> FencingToken:
        self._begin()
        try:
            return self._lock._entered()
        except BaseException:  # as in NamedLock.__enter__
            self._lock.release()
            raise


class Within(_Statement):
    """A ``with`` statement that acquires a lock in limited time: see :meth:`NamedLock.within`."""

    def __init__(self, lock: NamedLock, timeout: float) -> None:
        super().__init__(lock)
        self._timeout = timeout

    def _begin(self) -> None:
        if not self._lock.acquire(timeout=self._timeout):
            raise self._lock._not_in_time(self._timeout)


class Attaching(_Statement):
    """A ``with`` statement that attaches a detached hold: see :meth:`NamedLock.attaching`."""

    def __init__(self, lock: NamedLock, secret: str) -> None:
        super().__init__(lock)
        self._secret = secret

    def _begin(self) -> None:
        self._lock.attach(self._secret)


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
