"""What the tasks of one event loop share of one client."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fencedlock.asyncio.loops import call_soon, finish
from fencedlock.clock import now_seconds
from fencedlock.core.backend import LoopCalls
from fencedlock.core.claims import Claim
from fencedlock.core.schedule import Schedules
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.interrupts import Event
from fencedlock.runtime.process import become_own, own

MOST_THREADS = 8
"""The number of threads of one event loop that make the calls that block."""

DRAIN_SECONDS = 0.25
"""How long the end of an event loop waits for the answers to releases and withdrawals."""

_numbers = itertools.count(1)


class Session:
    """The calls, the beats of waiting claims and the threads of one event loop.

    The loop sends the beats of its waiting claims itself. So while it is blocked, they lose their
    turn to waiters that can use it. The holds of its tasks are renewed by the heartbeat's thread,
    whatever the loop does.
    """

    def __init__(self, state: ClientState, loop: asyncio.AbstractEventLoop) -> None:
        self.state: ClientState = state
        self.loop: asyncio.AbstractEventLoop = loop
        self.loop_reference: weakref.ref[Any] = weakref.ref(loop)
        self.client_id: str = f"{state.client_id}-{next(_numbers)}"
        """The ids of the claims of the loop's tasks begin with it."""
        self.closed: bool = False
        self._was_tried = False
        """True once it was tried to open the connection on which doorbells arrive."""
        self._gate = asyncio.Lock()
        self._coming = 0
        """How many tasks are in :meth:`listen`."""
        self._opening: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="fencedlock-asyncio")
        self.calls: LoopCalls = state.backend.calls_of_loop(loop, self.client_id, self._threads)
        self._schedules = Schedules()
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_at = float("inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._end = self._until_shutdown() if loop not in _shut_down else None
        # The loop knows of the generator from its first step on, and ends it when it shuts down.
        if self._end is not None:
            _step(self._end.__anext__())

    async def _until_shutdown(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            if not self.closed:
                await self.calls.drain(DRAIN_SECONDS)
                _shut_down.add(self.loop)
                self.close()

    def close(self) -> None:
        """Close the connections. Called in the thread of the loop, or when the loop is closed."""
        if self.closed:
            return
        self.closed = True
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self.calls.close()
        self._threads.shutdown(wait=False)
        if self.state.sessions.get(self.loop) is self:
            self.state.sessions.pop(self.loop, None)
        if self._end is not None:
            _step(self._end.aclose())  # otherwise its destructor would ask the loop to do that

    def close_from_outside(self, timeout_seconds: float) -> None:
        """Close the connections from any thread, and wait for that until the timeout."""
        if self.loop.is_running() and not self.is_here():
            done = Event()
            if self.close_soon(done.set):
                done.wait(timeout_seconds)
                return
        self.close()

    def close_soon(self, then: Callable[[], object] | None = None) -> bool:
        """Have the loop close the connections. Return False if it is closed. Waits for nothing."""

        def close() -> None:
            self.close()
            if then is not None:
                then()

        return call_soon(self.loop, close)

    def is_here(self) -> bool:
        """Return True if the loop runs in the calling thread."""
        return asyncio._get_running_loop() is self.loop

    def close_if_ended(self) -> None:
        """Close the connections, from any thread, if the loop was closed without a shutdown."""
        if self.loop.is_closed():
            self.close()

    # --- work in the background

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine as a task that is kept until it ends."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Run a function that blocks in another thread, and return its future."""
        return asyncio.wrap_future(self._threads.submit(function, *arguments), loop=self.loop)

    def finish(self, future: asyncio.Future[None]) -> None:
        """Wake whoever awaits this future. Called in any thread."""
        if self.is_here():
            finish(future)
        else:
            call_soon(self.loop, finish, future)

    # --- beats of waiting claims

    def keep(self, claim: Claim) -> None:
        """Send a beat for a waiting claim now, and then regularly until it is discarded."""
        with self.state.mutex:  # whoever closes the client discards claims, too
            self._schedules.plan(claim, claim.beat_every_seconds, 0.0)
        self._beat_by(0.0)

    def discard(self, claim: Claim) -> None:
        """Send no more beats for the claim."""
        if self._schedules.newcomers.pop(claim, None) is None and claim.schedule is not None:
            with self.state.mutex:
                self._schedules.drop(claim)

    def _beat_by(self, at: float) -> None:
        if at < self._beat_at:
            if self._beat_timer is not None:
                self._beat_timer.cancel()
            self._beat_at = at
            self._beat_timer = self.loop.call_later(max(0.0, at - now_seconds()), self._beat_due)

    def _beat_due(self) -> None:
        self._beat_timer, self._beat_at = None, float("inf")
        with self.state.mutex:
            due: list[Claim] = self._schedules.take_due(now_seconds())
            next_due = self._schedules.next_due()
        if due:
            self.start(self._beat(due))
        if next_due < float("inf"):
            self._beat_by(next_due)

    async def _beat(self, claims: list[Claim]) -> None:
        lease_seconds = min(claim.lease_seconds for claim in claims)
        answers = await self.calls.beat(claims, self.state.request_seconds(lease_seconds))
        for claim, answer in zip(claims, answers, strict=True):
            if not self.state.beat_answered(claim, answer):
                self.discard(claim)

    # --- messages

    @property
    def listening(self) -> bool:
        """True once doorbells can arrive, and no task that waited for that is about to ask."""
        return self._was_tried and not self._coming

    async def listen(self, timeout_seconds: float) -> None:
        """Open the connection on which doorbells arrive, and wait for it until the timeout.

        The tasks that wait for it go on in the order in which they came.
        """
        self._coming += 1
        try:
            async with asyncio.timeout(timeout_seconds), self._gate:
                if self._opening is None:
                    self._opening = self.start(self.calls.listen(self.state, timeout_seconds))
                if not self._was_tried:
                    await asyncio.wait((self._opening,))
        except TimeoutError:
            pass  # without doorbells, waiters ask more often
        finally:
            self._coming -= 1
        self._was_tried = True
        if self._opening is not None and self._opening.done() and not self._opening.cancelled():
            self._opening.exception()  # the same

    def reconnected(self) -> None:
        """Send a beat for every waiting claim of the loop now. Called in any thread."""
        call_soon(self.loop, self._beat_all)

    def _beat_all(self) -> None:
        for claim in list(self.state.claims.values()):
            if claim.issued is not None and claim.id.startswith(f"{self.client_id}/"):
                self.keep(claim)


_shut_down: weakref.WeakSet[Any] = weakref.WeakSet()
"""The loops whose shutdown has closed a session. They take no more generators."""


def _step(generator: Any) -> None:
    """Run a step of an asynchronous generator, which does not wait for anything."""
    try:
        generator.send(None)
    except (StopIteration, StopAsyncIteration, RuntimeError):
        pass  # it is done, or it is this generator that runs


def session_of(state: ClientState) -> Session:
    """Return the session of the running loop.

    Raises RuntimeError if no loop runs, and ConfigurationError if the client is closed.
    """
    loop = asyncio.get_running_loop()
    if not own[0]:
        become_own()
    session = state.sessions.get(loop)
    if session is not None:
        assert isinstance(session, Session)
        return session
    state.raise_if_closed()
    for other in list(state.sessions.values()):
        other.close_if_ended()
    session = state.sessions[loop] = Session(state, loop)
    return session
