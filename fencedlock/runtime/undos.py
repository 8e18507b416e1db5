"""Repeats what could not be undone at once: releases, withdrawals, the abandoning of lost holds."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError, FencedLockError

logger: logging.Logger = logging.getLogger("fencedlock")

MOST_UNDOS = 1000
"""The largest number of undos that are kept. If there are more, the oldest is given up, because its
lease ends soonest.
"""

RETRY_SECONDS = 0.25
"""The pause after an undo that failed."""


@dataclass(slots=True)
class _Undo:
    what: str
    action: Callable[[float], object]
    """Receives the request timeout in seconds."""
    moot_at: Callable[[], float]
    """Returns the local time at which the server has forgotten by itself what is to be undone."""


class Undos:
    """The actions that are still to be done, in order. Any thread may add one, without a mutex."""

    def __init__(self) -> None:
        self._undos: deque[_Undo] = deque()
        self._retry_at = 0.0

    def __len__(self) -> int:
        return len(self._undos)

    def add(
        self, what: str, action: Callable[[float], object], moot_at: Callable[[], float]
    ) -> None:
        """Add an action, which receives the request timeout. ``what`` names it in the log."""
        self._undos.append(_Undo(what, action, moot_at))
        while len(self._undos) > MOST_UNDOS:
            try:
                given_up = self._undos.popleft()
            except IndexError:
                break
            logger.debug(
                "fencedlock: %s is given up, because too many wait; its lease ends by itself",
                given_up.what,
            )

    @property
    def due(self) -> float:
        """The local time at which the next one is to be tried, infinity if there is none."""
        return self._retry_at if self._undos else float("inf")

    def retry(
        self,
        until: float,
        must_stop: Callable[[float], bool],
        timeout_seconds: Callable[[float], float],
    ) -> None:
        """Try one after another.

        Stop at the local time ``until``, if ``must_stop`` says so at the present time, or when the
        server does not answer. ``timeout_seconds`` returns the request timeout at the present time.
        """
        kept: list[_Undo] = []
        while self._undos:
            try:
                undo = self._undos.popleft()
            except IndexError:
                break
            now = now_seconds()
            if now >= undo.moot_at():
                continue
            if now >= until or must_stop(now):
                self._undos.appendleft(undo)
                break
            try:
                undo.action(timeout_seconds(now))
            except FencedLockError as error:
                logger.debug(
                    "fencedlock: %s failed, trying again until its lease ends: %s", undo.what, error
                )
                kept.append(undo)
                if isinstance(error, BackendUnavailableError):
                    self._retry_at = now_seconds() + RETRY_SECONDS
                    break
            except Exception:
                logger.exception("fencedlock: unexpected error in %s", undo.what)
        if kept and now_seconds() >= self._retry_at:
            self._retry_at = now_seconds() + RETRY_SECONDS
        self._undos.extend(kept)
