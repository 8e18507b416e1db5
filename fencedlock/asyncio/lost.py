"""How tasks learn that a lease is lost."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from fencedlock.asyncio.loops import call_soon, finish
from fencedlock.core.claims import Hold
from fencedlock.errors import LockLostError
from fencedlock.runtime.holding import lost_error, lost_event
from fencedlock.runtime.interrupts import Event
from fencedlock.token import FencingToken


class _Call:
    """Calls a function in a loop once an event is set, in place of a thread that sleeps for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Any) -> None:
        self._loop = loop
        self._function = function

    def release(self) -> None:
        call_soon(self._loop, self._function)


class LostEvent:
    """Tells when a lease is lost."""

    def __init__(self, event: Event | None) -> None:
        self._event = event

    def is_set(self) -> bool:
        """Return True once the lease is lost."""
        return self._event is not None and self._event.is_set()

    async def wait(self) -> bool:
        """Wait until the lease is lost, for ever if there never was a hold. Returns True."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        if self._event is None:
            await waiter
        else:
            call = _Call(loop, partial(finish, waiter))
            self._event.call(call)
            try:
                await waiter
            finally:
                self._event.call_no_more(call)
        return True


class _Lock(Protocol):
    async def __aenter__(self) -> FencingToken: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def _owned(self) -> Hold: ...


class Cancelling:
    """An ``async with`` whose body is cancelled when the lease is lost."""

    def __init__(self, lock: _Lock) -> None:
        self._lock = lock
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._cancellations = 0

    async def __aenter__(self) -> FencingToken:
        if self._task is not None:
            raise RuntimeError("this cancelling() was entered already: call it for each statement")
        token = await self._lock.__aenter__()
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancellations = task, task.cancelling()
        self._hold = self._lock._owned()
        self._event = lost_event(self._hold)
        self._call = _Call(asyncio.get_running_loop(), self._cancel)
        self._event.call(self._call)
        return token

    def _cancel(self) -> None:
        if self._task is not None:
            self._is_cancelled = True
            self._task.cancel(msg="the lock was lost")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        self._event.call_no_more(self._call)
        if not self._is_cancelled:
            await self._lock.__aexit__(kind, error, trace)
            return
        is_ours = (
            task.uncancel() <= self._cancellations
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        )
        try:
            await self._lock.__aexit__(None, None, None)
        except LockLostError as lost:
            if error is None:
                raise
            if is_ours:
                raise lost from error
            error.add_note(f"besides: {lost}")
            return
        if is_ours:
            raise lost_error(self._hold) from error
