"""Calls for the tasks of an event loop, made by threads, for a backend whose own calls block."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, ReleaseAnswer, RenewAnswer
from fencedlock.core.backend import Backend, Listener
from fencedlock.core.claims import Claim, Hold
from fencedlock.errors import BackendUnavailableError

RELEASE_ATTEMPTS = 2

ENDERS = 4
"""The number of threads of one event loop that send releases and withdrawals."""


class ThreadCalls:
    """Implements :class:`fencedlock.core.backend.LoopCalls` by the blocking calls of a backend."""

    def __init__(self, backend: Backend, threads: Executor) -> None:
        self._backend = backend
        self._threads = threads
        self._asking: dict[Claim, Future[Any]] = {}
        """The questions of claims that are under way."""
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._enders = ThreadPoolExecutor(ENDERS, thread_name_prefix="fencedlock-asyncio")
        """The threads for releases and withdrawals, which do not wait behind questions."""
        self._ending: set[Future[Any]] = set()
        """The releases and withdrawals that are under way."""

    async def listen(self, listener: Listener, timeout_seconds: float) -> None:
        await asyncio.wrap_future(self._submit(self._backend.listen, listener, timeout_seconds))

    async def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        give_up_at = now_seconds() + timeout_seconds
        if not (claim.patient and claim.fair):
            return await self._acquire(claim, join, give_up_at)
        # Threads would bring the tasks of this loop to the server in any order.
        turn = self._turns.get(claim.bound.name)
        if turn is None:
            turn = self._turns[claim.bound.name] = asyncio.Lock()
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for() of 3.11 loses cancellations
                await turn.acquire()
        except TimeoutError:
            raise _not_sent() from None
        try:
            return await self._acquire(claim, join, give_up_at)
        finally:
            turn.release()

    async def _acquire(self, claim: Claim, join: bool, give_up_at: float) -> ClaimAnswer:
        def ask() -> ClaimAnswer:
            left = give_up_at - now_seconds()  # the other threads may have been busy
            if left <= 0:
                raise _not_sent()
            return claim.bound.acquire(claim, join, left)

        asking = self._submit(ask)
        self._asking[claim] = asking
        asking.add_done_callback(lambda _: self._asking.pop(claim, None))
        answer: ClaimAnswer = await asyncio.wrap_future(asking)
        return answer

    async def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        answers: list[ClaimAnswer | Exception] = await asyncio.wrap_future(
            self._submit(self._backend.beat, claims, timeout_seconds)
        )
        return answers

    async def renew(self, hold: Hold, timeout_seconds: float) -> RenewAnswer:
        answer: RenewAnswer | Exception
        (answer,) = await asyncio.wrap_future(
            self._submit(self._backend.renew, [hold], timeout_seconds)
        )
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
            action = self._end_by(bound.keep, hold, keep_seconds, timeout_seconds, RELEASE_ATTEMPTS)
        else:
            action = self._end_by(bound.release, hold, timeout_seconds, RELEASE_ATTEMPTS)
        action.add_done_callback(lambda done: on_answer(done.exception() or done.result()))

    def withdraw(
        self, claim: Claim, timeout_seconds: float, on_end: Callable[[bool], object]
    ) -> None:
        def withdraw(_: Future[Any] | None = None) -> None:
            action = self._end_by(claim.bound.withdraw, claim, timeout_seconds)
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
            done, _ = await asyncio.wait(under_way, timeout=timeout_seconds)
            for action in done:
                if not action.cancelled():
                    action.exception()  # whoever began it has been told

    def close(self) -> None:
        """Start no more threads. Calls that are under way end by their own time limits."""
        self._enders.shutdown(wait=False)

    def _submit(
        self, function: Callable[..., Any], *arguments: Any, threads: Executor | None = None
    ) -> Future[Any]:
        try:
            return (threads or self._threads).submit(function, *arguments)
        except RuntimeError as error:  # the interpreter ends, or the loop was closed
            failed: Future[Any] = Future()
            failed.set_exception(BackendUnavailableError(f"no thread can be started: {error}"))
            return failed

    def _end_by(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        action = self._submit(function, *arguments, threads=self._enders)
        self._ending.add(action)
        action.add_done_callback(self._ending.discard)
        return action


def _not_sent() -> BackendUnavailableError:
    error = BackendUnavailableError(
        "etcd gave no answer in time to the questions before this one, which was not sent"
    )
    error.sent = False
    return error
