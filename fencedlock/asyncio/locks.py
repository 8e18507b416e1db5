"""The locks for tasks: Lock, RLock and FairLock."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from fencedlock.asyncio.acquiring import acquire
from fencedlock.asyncio.detaching import attach, detach
from fencedlock.asyncio.loops import call_soon
from fencedlock.asyncio.lost import Cancelling, LostEvent
from fencedlock.asyncio.releasing import Release, deepen, release, undeepen
from fencedlock.asyncio.session import Session, session_of
from fencedlock.core.claims import Hold
from fencedlock.core.info import LockInfo
from fencedlock.core.lease import LeaseState, checked_keep, checked_ttl
from fencedlock.errors import ConfigurationError, FencedLockError
from fencedlock.primitives.handle import Handle, SelfOwned
from fencedlock.primitives.timeouts import FOR_EVER, seconds_to_wait
from fencedlock.runtime.holding import lost_error, lost_event, renew
from fencedlock.runtime.owners import Owner, current_owner
from fencedlock.runtime.process import become_own, own
from fencedlock.token import FencingToken

logger: logging.Logger = logging.getLogger("fencedlock")

_T = TypeVar("_T")


class Answer(Generic[_T]):
    """The answer to a question, which is asked when this is awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, _T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._coroutine.__await__()

    def __bool__(self) -> NoReturn:
        raise TypeError("this is not the answer yet: await it")


class TaskLock(Handle):
    """What all locks for tasks have in common."""

    _package = "fencedlock.asyncio"

    def _prepare(self) -> None:
        super()._prepare()
        self._entered_holds: dict[int, list[Hold]] = {}
        """Maps the id of a task's owner to the holds that its ``async with`` have entered."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> Coroutine[Any, Any, bool]:
        """Acquire the lock."""
        raise NotImplementedError

    def release(self, *, keep: float = 0.0) -> Release:
        """Release the lock."""
        raise NotImplementedError

    async def __aenter__(self) -> FencingToken:
        await self.acquire()
        return self._entered()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._leave()
        except FencedLockError as ours:
            if error is None:
                raise
            error.add_note(f"besides: {ours}")

    def _entered(self) -> FencingToken:
        """Return the token of the hold that an ``async with`` statement has entered."""
        hold = self._owned()
        self._entered_holds.setdefault(current_owner().id, []).append(hold)
        return hold.fencing_token

    def _leave(self) -> Release:
        """Begin to end the hold that an ``async with`` statement has entered."""
        owner_id = current_owner().id
        holds = self._entered_holds.get(owner_id)
        entered = holds.pop() if holds else None
        if holds is not None and not holds:
            del self._entered_holds[owner_id]
        if entered is not None and self._hold() is not entered:
            if entered.is_detaching:
                return Release.ended(None)  # the present hold is none of this statement's
            if self._is_others(entered):
                return Release.ended(lost_error(entered))
        return self.release()

    def _is_others(self, _entered: Hold) -> bool:
        """Return True if another task may hold the lock since a statement has lost this hold."""
        return False

    def detach(self, *, ttl: float | None = None) -> Answer[str]:
        """Let go of a held lock without releasing it, so that somebody else can go on holding it.

        Await it. It returns a secret for :meth:`attach`, or for :meth:`fencedlock.Client.attach` in
        blocking code. See :meth:`fencedlock.RLock.detach`. An ``async with`` statement whose body
        has detached the lock does not release it. If the task is cancelled meanwhile, the lock is
        released in the background.

        Raises NotOwnedError at once if this task does not hold the lock, and ConfigurationError,
        and changes nothing, if the ttl is not valid or the lock is held more than once. Awaiting it
        raises LockLostError if the lease ended before, and BackendError as there.
        """
        return Answer(detach(self._settings.state, *self._detachable(ttl)))

    def attach(self, secret: str) -> Coroutine[Any, Any, None]:
        """Go on holding the lock that was detached with this secret. Await it.

        It raises what :meth:`fencedlock.RLock.attach` raises. If the task is cancelled meanwhile,
        the lock may be attached, and its lease runs out unless this client tries again.
        """
        if not own[0]:
            become_own()
        return self._attach(self._attacher(), secret)

    async def _attach(self, owner: Owner | None, secret: str) -> None:
        self._raise_if_holding()
        await attach(self._settings, owner or self._owner(), secret)

    def attaching(self, secret: str) -> Attaching:
        """Return an async context manager that goes on with the hold of this secret.

        ``async with lock.attaching(secret) as token:`` raises what :meth:`attach` raises, and
        otherwise behaves like ``async with lock as token:``.
        """
        return Attaching(self, secret)

    def _attacher(self) -> Owner | None:
        """Return the owner of a hold that is attached now. None if it is the task that awaits."""
        owner = self._owner()
        return owner if owner.kind == "task" else None

    def within(self, timeout: float) -> Within:
        """Return an async context manager that acquires the lock within ``timeout`` seconds.

        ``async with lock.within(5) as token:`` raises AcquireTimeoutError if the lock is not free
        in time, and otherwise behaves like ``async with lock as token:``. A timeout of 0 makes one
        attempt. Raises ValueError or OverflowError if the timeout is not valid.
        """
        seconds_to_wait(True, timeout)
        return Within(self, timeout)

    def cancelling(self) -> Cancelling:
        """Return an async context manager whose body is cancelled when the lease is lost.

        ``async with lock.cancelling() as token:`` acquires the lock. If the lease is lost, the task
        in the body is cancelled, and LockLostError leaves the statement. A cancellation by others
        stays a cancellation.
        """
        return Cancelling(self)

    @property
    def lost(self) -> LostEvent:
        """Tells when the lease is lost: ``lost.is_set()``, ``await lost.wait()``.

        It belongs to this task's hold. In a task that does not hold the lock, it belongs to the
        latest hold of this handle, so that a task that watches over the holder can wait for it.
        Each outermost hold has a new one.
        """
        hold = self._hold_around() or self._settings.latest
        return LostEvent(None if hold is None else lost_event(hold))

    def locked(self) -> Answer[bool]:
        """Return whether anybody holds the lock. Asks the server, unless this process holds it.

        Await it. Raises BackendError if the server refuses or does not answer.
        """
        return Answer(self._locked())

    async def _locked(self) -> bool:
        return self._held_here() is not None or (await self.info()).locked

    def info(self) -> Answer[LockInfo]:
        """Return the holder and the queue of the lock, as the server knows them.

        Await it. Raises BackendError if the server refuses or does not answer.
        """
        return Answer(self._in_thread(self._client.inspect, self.name))

    def renew(self, ttl: float | None = None) -> Answer[None]:
        """Renew the lease now, so that it lasts ``ttl`` seconds from now on.

        Without ``ttl``, the lease keeps its length. Leases are renewed in the background anyway,
        also while the loop is blocked. Await it.

        Raises NotOwnedError at once if this task does not hold the lock, and ConfigurationError if
        the ttl is not valid. Awaiting it raises LockLostError if the lease was lost, and
        BackendError if the server refuses or does not answer.
        """
        hold = self._held()
        lease_seconds = hold.lease_seconds if ttl is None else checked_ttl(ttl)
        return Answer(self._in_thread(renew, self._settings.state, hold, lease_seconds))

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any) -> _T:
        answer: _T = await session_of(self._settings.state).in_thread(function, *arguments)
        return answer

    def _session(self) -> Session | None:
        """Return the session of the running loop.

        None if no loop runs in this thread, or if the client is closed.
        """
        try:
            return session_of(self._settings.state)
        except (RuntimeError, ConfigurationError):
            return None

    def _end_hold(self, hold: Hold, keep: float) -> Release:
        keep_seconds = 0.0 if keep == 0 else checked_keep(keep)
        return release(self._settings.state, self._session(), hold, keep_seconds)

    def _caller(self, callback: Callable[..., object], hold: Hold) -> Callable[..., object]:
        """Return a function that runs a callback of this handle, or a coroutine, in the loop."""
        loop: Any = hold.claim.loop and hold.claim.loop()
        if loop is None or not (
            callback in self._callbacks or inspect.iscoroutinefunction(callback)
        ):
            return partial(callback, self)

        def call(*arguments: object) -> None:
            if call_soon(loop, _call_in_loop, self, callback, arguments):
                return
            if inspect.iscoroutinefunction(callback):
                raise RuntimeError("the event loop of the holder was closed")
            callback(self, *arguments)

        return call


_callbacks: set[asyncio.Task[None]] = set()
"""The tasks of callbacks, which nobody else refers to."""


def _call_in_loop(
    lock: TaskLock, callback: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    try:
        result = callback(lock, *arguments)
    except Exception:
        logger.exception("fencedlock: a callback of lock %r failed", lock.name)
        return
    if asyncio.iscoroutine(result):
        task = asyncio.get_running_loop().create_task(_finish(lock, result))
        _callbacks.add(task)
        task.add_done_callback(_callbacks.discard)


async def _finish(lock: TaskLock, coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except Exception:
        logger.exception("fencedlock: a callback of lock %r failed", lock.name)


class RLock(TaskLock):
    """A reentrant lock that tasks, threads, processes and hosts share by its name.

    It belongs to the task that calls :meth:`acquire`, or awaits it if no task has called. It may be
    made anywhere, also where no loop
    runs, and used in any number of loops, one after another or at the same time. The arguments are
    those of :class:`fencedlock.RLock`, with the same clients. ``on_lost``, ``on_at_risk``,
    ``on_safe`` and ``on_requested`` may be coroutine functions. They run in the loop of the task
    that holds the lock.

    Leases are renewed by a background thread, also while the loop is blocked. A task whose loop is
    blocked while it waits is passed over after its span of at most 10 seconds.

    Raises ConfigurationError, before any I/O, if the name, the ttl or the client is not valid.
    """

    _fair: ClassVar[bool] = False

    _owner = staticmethod(current_owner)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> Coroutine[Any, Any, bool]:
        """Acquire the lock, or go one level deeper if the task that calls already holds it.

        Await it. It returns True if the lock is held now, and False if it was not free in time.
        ``timeout`` is in seconds, and -1 means to wait for ever. A timeout of 0 makes one attempt,
        like ``blocking=False``. If the task is cancelled, also by ``asyncio.timeout``, nothing
        stays on the server.

        Raises BackendUnavailableError if the server does not answer within the timeout (without a
        timeout, within the ``outage_timeout`` of the client), and BackendError if the server
        refuses. Raises AcquireCancelledError if the client is closed meanwhile, and
        ConfigurationError if it was closed before. Raises LockLostError if this task still holds a
        lease that was lost. Raises WouldDeadlockError if the thread that runs the loop holds the
        lock. For invalid arguments it raises what ``threading`` raises: ValueError, OverflowError
        or TypeError.
        """
        timeout_seconds = (
            FOR_EVER if blocking and timeout == -1 else seconds_to_wait(blocking, timeout)
        )
        if not own[0]:
            become_own()
        owner = self._owner()
        if owner.kind == "task":
            return self._acquire(owner, timeout_seconds)
        return self._acquire_in_task(timeout_seconds)

    async def _acquire(self, owner: Owner, timeout_seconds: float) -> bool:
        hold = self._settings.resource.holds.get(owner.id)
        if hold is not None and hold.state is not LeaseState.RELEASED:
            await deepen(session_of(self._settings.state), hold)
            return True
        return await acquire(self._settings, owner, timeout_seconds)

    async def _acquire_in_task(self, timeout_seconds: float) -> bool:
        """Acquire for the task that awaits, because no task has called."""
        return await self._acquire(self._owner(), timeout_seconds)

    def release(self, *, keep: float = 0.0) -> Release:
        """Release one level. The last release frees the lock and hands it to the next waiter.

        The release is sent when it is called. Awaiting it waits for the answer, and raises
        LockLostError if the lease ended before. With ``keep``, nobody gets the lock in the next
        ``keep`` seconds, as with :meth:`fencedlock.RLock.release`.

        Raises NotOwnedError at once if the task that calls does not hold the lock, and
        ConfigurationError, and changes nothing, if ``keep`` is no number of seconds or if this is
        not the last release.
        """
        if not own[0]:
            become_own()
        hold = self._owned("cannot release un-acquired lock")
        if hold.depth == 1:
            return self._end_hold(hold, keep)
        if keep:
            raise self._keep_refused(hold.depth)
        return undeepen(self._session(), self._settings.state, hold)


class FairLock(RLock):
    """A reentrant lock for tasks that serves waiters in the order in which they came.

    A waiter that can't be reached is passed over. It is one lock with the
    :class:`fencedlock.FairLock` of the same name.
    """

    _fair = True


class Lock(SelfOwned, TaskLock):
    """A lock that belongs to its handle, and behaves like ``asyncio.Lock``.

    Any task that has the handle may release the lock. It is not reentrant: an acquire through a
    handle that holds the lock waits until somebody releases it. Two handles of one name exclude
    each other, also in one task. Waiters that can be reached get the lock in the order in which
    they came. The lock is held until it is released, or until its handle is collected, its client
    is closed, or its process ends. The arguments are those of :class:`fencedlock.asyncio.RLock`.

    Raises ConfigurationError, before any I/O, if the name, the ttl or the client is not valid.
    """

    _fair = True

    def acquire(self, blocking: bool = True, timeout: float = -1) -> Coroutine[Any, Any, bool]:
        """Acquire the lock. Await it.

        It returns True if the lock is held now, and False if it was not free in time. ``timeout``
        is in seconds, and -1 means to wait for ever. A timeout of 0 makes one attempt, like
        ``blocking=False``. If the task is cancelled, also by ``asyncio.timeout``, nothing stays on
        the server. Raises what
        :meth:`fencedlock.asyncio.RLock.acquire` raises.
        """
        timeout_seconds = seconds_to_wait(blocking, timeout)
        if not own[0]:
            become_own()
        return self._acquire(timeout_seconds)

    async def _acquire(self, timeout_seconds: float) -> bool:
        return await acquire(self._settings, self._handle_owner.here(), timeout_seconds)

    def release(self, *, keep: float = 0.0) -> Release:
        """Free the lock and hand it to the next waiter. Any task may call this.

        The release is sent when it is called. Awaiting it waits for the answer, and raises
        LockLostError if the lease ended before. With ``keep``, nobody gets the lock in the next
        ``keep`` seconds, as with :meth:`fencedlock.Lock.release`.

        Raises NotOwnedError at once if this handle does not hold the lock, and ConfigurationError,
        and changes nothing, if ``keep`` is no number of seconds.
        """
        return self._end_hold(self._owned("release unlocked lock"), keep)

    def _attacher(self) -> Owner:
        return self._handle_owner.here()

    def _is_others(self, entered: Hold) -> bool:
        return entered.state is LeaseState.LOST


class _Statement:
    """An ``async with`` that gets a lock in its own way, and releases it as any other."""

    def __init__(self, lock: TaskLock) -> None:
        self._lock = lock

    async def _begin(self) -> None:
        """Get the lock."""
        raise NotImplementedError

    async def __aenter__(self) -> FencingToken:
        await self._begin()
        return self._lock._entered()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._lock.__aexit__(kind, error, trace)


class Within(_Statement):
    """An ``async with`` that acquires a lock in limited time: see :meth:`TaskLock.within`."""

    def __init__(self, lock: TaskLock, timeout: float) -> None:
        super().__init__(lock)
        self._timeout = timeout

    async def _begin(self) -> None:
        if not await self._lock.acquire(timeout=self._timeout):
            raise self._lock._not_in_time(self._timeout)


class Attaching(_Statement):
    """An ``async with`` that attaches a detached hold: see :meth:`TaskLock.attaching`."""

    def __init__(self, lock: TaskLock, secret: str) -> None:
        super().__init__(lock)
        self._secret = secret

    async def _begin(self) -> None:
        await self._lock.attach(self._secret)
