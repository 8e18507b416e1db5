"""The user's functions that are called when something happens to a hold, on one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from fencedlock.errors import ConfigurationError
from fencedlock.runtime.threads import Worker

logger: logging.Logger = logging.getLogger("fencedlock")

LossCallback = Callable[[Any, str], object]
"""The type of ``on_lost``: a function that receives the lost lock and the reason."""

RiskCallback = Callable[[Any, float], object]
"""The type of ``on_at_risk``: a function that receives the lock and the seconds that are left."""

SafetyCallback = Callable[[Any], object]
"""The type of ``on_safe``: a function that receives the lock."""


RequestCallback = Callable[[Any, str], object]
"""The type of ``on_requested``: a function that receives the lock and the reason."""


class Callbacks(NamedTuple):
    """The functions of one handle, or of one client, whose handles may have none of their own."""

    on_lost: LossCallback | None = None
    on_at_risk: RiskCallback | None = None
    on_safe: SafetyCallback | None = None
    on_requested: RequestCallback | None = None

    def checked(self) -> Callbacks:
        """Return these callbacks. Raise ConfigurationError for one that can't be called."""
        for kind, callback in self._asdict().items():
            if callback is not None and not callable(callback):
                raise ConfigurationError(f"{kind} must be a function, not {callback!r}")
        return self


def finish_coroutine(coroutine: Coroutine[Any, Any, object], loop: Any) -> None:
    """Run what a coroutine function has returned: in this event loop, or without one in a new one.

    It is called on the thread of the callbacks, and does not wait for the event loop.
    """
    import asyncio  # only who has coroutine functions needs it here

    if loop is None or not loop.is_running():
        asyncio.run(coroutine)
        return

    def look_at(done: Future[object]) -> None:
        if not done.cancelled() and done.exception() is not None:
            logger.error("fencedlock: a callback failed", exc_info=done.exception())

    asyncio.run_coroutine_threadsafe(coroutine, loop).add_done_callback(look_at)


class Calls:
    """A queue of calls of such functions, in order, and the thread that makes them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[str, str, Callable[[], object]] | None] = SimpleQueue()
        self._worker = Worker(self._run, "fencedlock-callbacks")

    def add(self, kind: str, name: str, what: str, call: Callable[[], object]) -> None:
        """Have the call made on the thread.

        If no thread can be started, the log tells ``what`` has happened to the lock of this name.
        """
        self._queue.put((kind, name, call))
        try:
            self._worker.start()
        except RuntimeError as error:
            logger.error(  # noqa: TRY400 - a traceback would not help here
                "fencedlock: %s of lock %r was not called, because no thread can be started (%s); "
                "%s",
                kind,
                name,
                error,
                what,
            )

    def close(self) -> None:
        """End the thread after it has made all calls in the queue."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            kind, name, call = item
            try:
                call()
            except Exception:
                logger.exception("fencedlock: %s of lock %r failed", kind, name)
            # Otherwise the lock would stay alive until the next call.
            item = call = None  # type: ignore[assignment]
