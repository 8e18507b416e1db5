"""Calls ``on_lost`` for the locks of one client, on one thread for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from fencedlock.runtime.threads import Worker

logger: logging.Logger = logging.getLogger("fencedlock")


class Named(Protocol):
    """A lock that was lost, as the user has it."""

    @property
    def name(self) -> str:
        """Its name."""


class Losses:
    """The losses that callbacks still have to be told of, in order."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[Any, str], object], Named, str] | None] = SimpleQueue()
        self._worker = Worker(self._run, "fencedlock-on-lost")

    def tell(self, callback: Callable[[Any, str], object], lock: Named, reason: str) -> None:
        """Have the callback called."""
        self._queue.put((callback, lock, reason))
        try:
            self._worker.start()
        except RuntimeError as error:
            logger.error(  # noqa: TRY400 - where the thread could not start says nothing
                "fencedlock: on_lost of lock %r was not called, because no thread can be started (%s); the lock was lost: %s",
                lock.name,
                error,
                reason,
            )

    def close(self) -> None:
        """End the thread, after what is in the queue."""
        self._queue.put(None)

    def _run(self) -> None:
        while (loss := self._queue.get()) is not None:
            callback, lock, reason = loss
            try:
                callback(lock, reason)
            except Exception:
                logger.exception("fencedlock: on_lost of lock %r failed", lock.name)
            loss = callback = lock = None  # type: ignore[assignment] # or they would live until the next loss
