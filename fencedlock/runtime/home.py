"""The client from the point of view of its locks, and the default client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fencedlock.core.info import LockInfo
from fencedlock.runtime.lock_table import LockTable


class Home(Protocol):
    """The part of a client that its locks use."""

    _table: LockTable

    def inspect(self, name: str) -> LockInfo:
        """Return the holder and the queue of the lock of this name."""


_find_default: Callable[[], Home]


def default_home() -> Home:
    """Return the default client of this process.

    Raises ConfigurationError if none is configured.
    """
    return _find_default()


def find_default_by(finder: Callable[[], Home]) -> None:
    """Set the function that finds the default client."""
    global _find_default
    _find_default = finder
