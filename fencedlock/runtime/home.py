"""Where a lock lives: the client, as its locks see it, and the one for locks that are given none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fencedlock.core.info import LockInfo
from fencedlock.runtime.lock_table import LockTable


class Home(Protocol):
    """A client."""

    _table: LockTable

    def inspect(self, name: str) -> LockInfo:
        """Who holds the lock of this name, and who waits for it."""


_finders: list[Callable[[], Home]] = []


def default_home() -> Home:
    """The default client of this process. Raises ConfigurationError if none is configured."""
    return _finders[0]()


def find_default_by(finder: Callable[[], Home]) -> None:
    """Have the default client found so."""
    _finders[:] = [finder]
