"""The calls of the tasks of one event loop to one Redis server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from fencedlock.backends.redis.connections import left_of
from fencedlock.backends.redis.inbox import Inbox
from fencedlock.backends.redis.lock import RedisLock, released_or_not
from fencedlock.backends.redis.pipe import OnReply, Pipe, Question
from fencedlock.backends.redis.scripts import Script
from fencedlock.backends.redis.server import RedisServer
from fencedlock.backends.redis.server_time import MOST_LATE, clock_jumps
from fencedlock.clock import now_seconds
from fencedlock.core.answers import ClaimAnswer, ReleaseAnswer, RenewAnswer
from fencedlock.core.backend import Listener
from fencedlock.core.claims import Claim, Hold
from fencedlock.errors import BackendUnavailableError, FencedLockError

_DRAIN_LOOK_SECONDS = 0.005


class RedisLoopCalls:
    """Implements :class:`fencedlock.core.backend.LoopCalls` with one pipe and one inbox."""

    def __init__(
        self,
        server: RedisServer,
        client_id: str,
        inbox: Inbox,
        loop: asyncio.AbstractEventLoop,
        threads: Executor,
    ) -> None:
        self._client_id = client_id
        self._server = server
        self._scripts = server.scripts
        self._inbox = inbox
        self._loop = loop
        self._threads = threads
        self._pipe = Pipe(loop, server.connections, threads, server.request_timeout_seconds)

    async def listen(self, listener: Listener, timeout_seconds: float) -> None:
        self._inbox.read_in(self._loop)
        try:
            await asyncio.wrap_future(self._threads.submit(self._open, listener, timeout_seconds))
        except RuntimeError:
            pass  # the interpreter ends, so there will be no doorbells

    def _open(self, listener: Listener, timeout_seconds: float) -> None:
        began_at = now_seconds()
        if not self._server.ahead_us:
            # Otherwise the first questions would be late, and later ones would overtake them.
            self._server.ask_time(timeout_seconds)
        self._inbox.open(listener, left_of(timeout_seconds, began_at))

    async def acquire(self, claim: Claim, join: bool, timeout_seconds: float) -> ClaimAnswer:
        # Twin of RedisLock.acquire.
        server, late, bound = self._server, 0, _lock_of(claim)
        ticket = claim.ticket
        before_us = ticket.not_after_us
        mode = "try" if not join else "queue" if claim.issued is None else "beat"
        while late < MOST_LATE:
            asked_at = now_seconds()
            not_after_us = int((asked_at + timeout_seconds) * 1e6 + server.ahead_us)
            make = partial(bound.pack_acquire, claim, not_after_us, mode)
            ticket.not_after_us = max(not_after_us, before_us)
            try:
                reply, sent = await self._call(self._scripts.acquire, make, timeout_seconds)
            except BackendUnavailableError as error:
                if not error.sent:
                    ticket.not_after_us = before_us
                raise
            if sent == 1:
                ticket.not_after_us = before_us
            answer = server.read_claim_answer(claim, reply, asked_at)
            if answer is not None:
                return answer
            late += 1
            timeout_seconds = left_of(timeout_seconds, asked_at)
        raise clock_jumps()

    async def beat(
        self, claims: Sequence[Claim], timeout_seconds: float
    ) -> list[ClaimAnswer | Exception]:
        answers = await asyncio.gather(
            *(self._beat(claim, timeout_seconds) for claim in claims), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, FencedLockError):
                raise answer
        return answers  # type: ignore[return-value]

    async def _beat(self, claim: Claim, timeout_seconds: float) -> ClaimAnswer:
        server, bound = self._server, _lock_of(claim)

        def pack(not_after_us: int) -> bytes:
            return bound.pack_acquire(claim, not_after_us, "beat")

        answer: ClaimAnswer = await self._ask(
            self._scripts.acquire, pack, partial(server.read_claim_answer, claim), timeout_seconds
        )
        return answer

    async def renew(self, hold: Hold, timeout_seconds: float) -> RenewAnswer:
        answer: RenewAnswer = await self._ask(
            self._scripts.renew,
            partial(_lock_of(hold).pack_renew, hold),
            partial(self._server.read_renew_answer, hold),
            timeout_seconds,
        )
        return answer

    async def _ask(
        self,
        script: Script,
        pack: Callable[[int], bytes],
        read: Callable[[bytes, float], Any],
        timeout_seconds: float,
    ) -> Any:
        for _ in range(MOST_LATE):
            asked_at = now_seconds()
            make = partial(pack, self._server.server_us(asked_at + timeout_seconds))
            reply, _ = await self._call(script, make, timeout_seconds)
            answer = read(reply, asked_at)
            if answer is not None:
                return answer
            timeout_seconds = left_of(timeout_seconds, asked_at)
        raise clock_jumps()

    def release(
        self,
        hold: Hold,
        keep_seconds: float,
        timeout_seconds: float,
        on_answer: Callable[[ReleaseAnswer | BaseException], object],
    ) -> None:
        bound = _lock_of(hold)
        if keep_seconds:
            script, packed = self._scripts.keep, bound.pack_keep(hold, keep_seconds)
        else:
            script, packed = self._scripts.release, bound.pack_release(hold)

        def on_reply(reply: Any, sent: int) -> None:
            try:
                on_answer(reply if isinstance(reply, Exception) else released_or_not(reply, sent))
            except FencedLockError as error:
                on_answer(error)

        self._begin(script, packed, timeout_seconds, on_reply)

    def withdraw(
        self, claim: Claim, timeout_seconds: float, on_end: Callable[[bool], object]
    ) -> None:
        def on_reply(reply: Any, _sent: int) -> None:
            on_end(not isinstance(reply, Exception))

        packed = _lock_of(claim).pack_withdraw(claim)
        self._begin(self._scripts.withdraw, packed, timeout_seconds, on_reply)

    async def drain(self, timeout_seconds: float) -> None:
        until = now_seconds() + timeout_seconds
        while self._pipe.busy and now_seconds() < until:  # noqa: ASYNC110 - only at the end of a loop
            await asyncio.sleep(_DRAIN_LOOK_SECONDS)

    def close(self) -> None:
        self._pipe.close(in_loop=not self._loop.is_closed())
        self._inbox.leave_loop()
        self._inbox.close(0.0)
        self._server.forget_inbox(self._client_id)

    # ---

    async def _call(
        self, script: Script, make: Callable[[], bytes], timeout_seconds: float
    ) -> tuple[bytes, int]:
        """Return the answer of a script, and how often the call was sent."""
        asked_at = now_seconds()
        future: asyncio.Future[tuple[Any, int]] = self._loop.create_future()
        self._pipe.ask(Question(make, asked_at, timeout_seconds, future=future))
        reply, sent = await future
        if type(reply) is not bytes:
            return await self._call_with_text(script, make, timeout_seconds, asked_at, reply, sent)
        return reply, sent

    async def _call_with_text(
        self,
        script: Script,
        make: Callable[[], bytes],
        timeout_seconds: float,
        asked_at: float,
        error: Exception,
        sent: int,
    ) -> tuple[bytes, int]:
        """Repeat a call with the script's text, if it failed because the server lacks it."""
        if not self._server.has_not_loaded(error):
            raise self._server.refused(error)
        future: asyncio.Future[tuple[Any, int]] = self._loop.create_future()
        seconds = left_of(timeout_seconds, asked_at)
        self._pipe.ask(
            Question(lambda: script.with_text(make()), now_seconds(), seconds, future=future)
        )
        reply, more = await future
        if type(reply) is not bytes:
            raise self._server.refused(reply)
        return reply, sent + more - 1

    def _begin(
        self, script: Script, packed: bytes, timeout_seconds: float, on_reply: OnReply
    ) -> None:
        """Call a script, by its text if the server has not loaded it."""
        server, asked_at = self._server, now_seconds()

        def reply_to(reply: Any, sent: int) -> None:
            if type(reply) is bytes or not server.has_not_loaded(reply):
                on_reply(server.refused(reply), sent)
                return
            self._pipe.ask(
                Question(
                    lambda: script.with_text(packed),
                    now_seconds(),
                    left_of(timeout_seconds, asked_at),
                    on_reply=lambda reply, more: on_reply(server.refused(reply), sent + more - 1),
                )
            )

        self._pipe.ask(Question(lambda: packed, asked_at, timeout_seconds, on_reply=reply_to))


def _lock_of(target: Claim | Hold) -> RedisLock:
    assert isinstance(target.bound, RedisLock)
    return target.bound
