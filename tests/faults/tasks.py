"""Tasks as contenders: locks of fencedlock.asyncio, which a thread uses like blocking ones.

Each contender has a task of its own, which owns what it acquires. The tasks of a process share one
event loop, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import fencedlock
import fencedlock.asyncio

unanswered: Counter[str] = Counter()
"""How many releases of each lock had no answer, by the words of the log."""


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._ending: asyncio.Future[None] = self.loop.create_future()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._until_end())

    async def _until_end(self) -> None:
        await self._ending

    def close(self) -> None:
        """End the tasks, and the loop as ``asyncio.run`` does."""
        self.loop.call_soon_threadsafe(self._ending.set_result, None)
        self._thread.join()


class Task:
    """A task that does what a thread tells it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._orders: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], Future[Any]]] = (
            asyncio.Queue()
        )
        self._task = asyncio.run_coroutine_threadsafe(self._serve(), loop)

    async def _serve(self) -> None:
        while True:
            action, done = await self._orders.get()
            try:
                done.set_result(await action())
            except asyncio.CancelledError:
                done.set_exception(fencedlock.AcquireCancelledError("the task was cancelled"))
                task = asyncio.current_task()
                assert task is not None
                if not task.cancelling():
                    continue  # the cancellation was that of an inner task
                raise
            except BaseException as error:
                done.set_exception(error)

    def do(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Let the task await what this function returns, and return the result."""
        done: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._orders.put_nowait, (action, done))
        return done.result()

    def say(self, action: Callable[[], Any]) -> Any:
        """Let the task call a function that needs no awaiting, and return the result."""

        async def call() -> Any:
            return action()

        return self.do(call)


class _CancelTask:
    """Rings by cancelling a task, for a Cancellation."""

    def __init__(self, task: asyncio.Task[bool]) -> None:
        self._task = task

    def ring(self) -> None:
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)


class LockOfTask:
    """A lock for a task, with the interface that the contenders use."""

    def __init__(self, task: Task, lock: fencedlock.asyncio.RLock) -> None:
        self._task = task
        self._lock = lock
        self.name = lock.name
        self._fair = lock._fair

    def again(self, client: fencedlock.Client) -> LockOfTask:
        """Return another handle of the same lock."""
        return LockOfTask(self._task, fencedlock.asyncio.RLock(self.name, client=client))

    def acquire(
        self,
        blocking: bool = True,
        timeout: float = -1,
        *,
        cancel: fencedlock.Cancellation | None = None,
    ) -> bool:
        async def acquire() -> bool:
            acquiring = self._lock.acquire(blocking, timeout)
            if cancel is None:
                return await acquiring
            cancel.raise_if_cancelled(self.name)
            inner = asyncio.create_task(acquiring)
            bell: Any = _CancelTask(inner)
            cancel._attach(bell)
            try:
                return await inner
            finally:
                cancel._detach(bell)

        granted: bool = self._task.do(acquire)
        return granted

    def release(self) -> bool:
        """Release once. Return False if the release had no answer and goes on in the background."""
        before = unanswered[self.name]
        self._task.do(lambda: self._lock.release())
        return unanswered[self.name] == before

    def renew(self, ttl: float | None = None) -> None:
        self._task.do(lambda: self._lock.renew(ttl))

    def detach(self) -> str:
        secret: str = self._task.do(lambda: self._lock.detach())
        return secret

    def attach(self, secret: str) -> None:
        self._task.do(lambda: self._lock.attach(secret))

    def ensure_held(self) -> None:
        self._task.say(self._lock.ensure_held)

    def _is_owned(self) -> bool:
        owned: bool = self._task.say(self._lock.owned)
        return owned

    def _recursion_count(self) -> int:
        depth: int = self._task.say(lambda: self._lock.depth)
        return depth

    def _owned(self) -> Any:
        return self._task.say(self._lock._owned)

    @property
    def token(self) -> Any:
        return self._task.say(lambda: self._lock.token)
