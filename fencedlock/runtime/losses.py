"""The calls of the ``on_lost`` callbacks of one client, all on one thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from fencedlock.runtime.threads import Worker

logger: logging.Logger = logging.getLogger("fencedlock")


class Named(Protocol):
    """The handle of a lost lock, as far as it is used here."""

    @property
    def name(self) -> str:
        """The name of the lock."""


class Losses:
    """A queue of losses, in order, and the thread that calls the callbacks."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[Any, str], object], Named, str] | None] = (
            SimpleQueue()
        )
        self._worker = Worker(self._run, "fencedlock-on-lost")

    def tell(self, callback: Callable[[Any, str], object], lock: Named, reason: str) -> None:
        """Have the callback called on the thread, with this lock and this reason."""
        self._queue.put((callback, lock, reason))
        try:
            self._worker.start()
        except RuntimeError as error:
            logger.error(  # noqa: TRY400 - a traceback would not help here
                "fencedlock: on_lost of lock %r was not called, because no thread can be started "
                "(%s); the lock was lost: %s",
                lock.name,
                error,
                reason,
            )

    def close(self) -> None:
        """End the thread after it has reported all losses in the queue."""
        self._queue.put(None)

    def _run(self) -> None:
        while (loss := self._queue.get()) is not None:
            callback, lock, reason = loss
            try:
                callback(lock, reason)
            except Exception:
                logger.exception("fencedlock: on_lost of lock %r failed", lock.name)
            # Otherwise these objects would stay alive until the next loss.
            loss = callback = lock = None  # type: ignore[assignment]
