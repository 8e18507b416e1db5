"""Calls for the tasks of an event loop, made by threads, for a backend whose own calls block."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from fencedlock.core.answers import ClaimAnswer, ReleaseAnswer, RenewAnswer
from fencedlock.core.backend import Backend, Listener
from fencedlock.core.claims import Claim, Hold
from fencedlock.errors import BackendUnavailableError

RELEASE_ATTEMPTS = 2


class ThreadCalls:
    """Implements :class:`fencedlock.core.backend.LoopCalls` by the blocking calls of a backend."""

    def __init__(self, backend: Backend, threads: Executor) -> None:
        self._backend = backend
        self._threads = threads
        self._asking: dict[Claim, Future[Any]] = {}
        """The questions of claims that are under way."""
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._ending: set[Future[Any]] = set()
        """The releases and withdrawals that are under way."""

    async def listen(self, listener: Listener, timeout_seconds: float) -> None:
        await self._awaited(self._submit(self._backend.listen, listener, timeout_seconds))

    async def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        if not (claim.patient and claim.fair):
            return await self._acquire(claim, join, timeout_seconds)
        # Threads would bring the tasks of this loop to the server in any order.
        turn = self._turns.get(claim.bound.name)
        if turn is None:
            turn = self._turns[claim.bound.name] = asyncio.Lock()
        async with turn:
            return await self._acquire(claim, join, timeout_seconds)

    async def _acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        asking = self._submit(claim.bound.acquire, claim, join, timeout_seconds)
        self._asking[claim] = asking
        asking.add_done_callback(lambda _: self._asking.pop(claim, None))
        answer: ClaimAnswer = await self._awaited(asking)
        return answer

    async def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        answers: list[ClaimAnswer | Exception] = await self._awaited(
            self._submit(self._backend.beat, claims, timeout_seconds)
        )
        return answers

    async def renew(self, hold: Hold, timeout_seconds: float) -> RenewAnswer:
        answer: RenewAnswer | Exception
        (answer,) = await self._awaited(self._submit(self._backend.renew, [hold], timeout_seconds))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(
        self,
        hold: Hold,
        keep_seconds: float,
        timeout_seconds: float,
        on_answer: Callable[[ReleaseAnswer | BaseException], object],
    ) -> None:
        bound = hold.bound
        if keep_seconds:
            action = self._submit(bound.keep, hold, keep_seconds, timeout_seconds, RELEASE_ATTEMPTS)
        else:
            action = self._submit(bound.release, hold, timeout_seconds, RELEASE_ATTEMPTS)
        self._end_by(action)
        action.add_done_callback(lambda done: on_answer(done.exception() or done.result()))

    def withdraw(
        self, claim: Claim, timeout_seconds: float, on_end: Callable[[bool], object]
    ) -> None:
        def withdraw(_: Future[Any] | None = None) -> None:
            action = self._submit(claim.bound.withdraw, claim, timeout_seconds)
            self._end_by(action)
            action.add_done_callback(lambda done: on_end(done.exception() is None))

        asking = self._asking.get(claim)
        if asking is None or asking.done():
            withdraw()
        else:
            # It can't be called back, and would take a place after the withdrawal.
            asking.add_done_callback(withdraw)

    async def drain(self, timeout_seconds: float) -> None:
        under_way = [
            asyncio.wrap_future(action) for action in (*self._asking.values(), *self._ending)
        ]
        if under_way:
            await asyncio.wait(under_way, timeout=timeout_seconds)

    def close(self) -> None:
        """Do nothing. Calls that are under way end by their own time limits."""

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        try:
            return self._threads.submit(function, *arguments)
        except RuntimeError as error:  # the interpreter ends, or the loop was closed
            failed: Future[Any] = Future()
            failed.set_exception(BackendUnavailableError(f"no thread can be started: {error}"))
            return failed

    def _end_by(self, action: Future[Any]) -> None:
        self._ending.add(action)
        action.add_done_callback(self._ending.discard)

    @staticmethod
    def _awaited(action: Future[Any]) -> asyncio.Future[Any]:
        return asyncio.wrap_future(action)
