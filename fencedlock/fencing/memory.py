"""State in this process: for services that keep their own, and for tests."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from fencedlock.fencing.base import checked_resource, other_lock, stale_token
from fencedlock.runtime.threads import make_mutex
from fencedlock.token import FencingToken


class MonotonicFence:
    """For each resource the highest token that this process has seen.

    Thread-safe; forgotten when the process ends.
    """

    def __init__(self) -> None:
        self._mutex = make_mutex()
        self._highest: dict[str, FencingToken] = {}
        self._guards: weakref.WeakValueDictionary[str, threading.RLock] = (
            weakref.WeakValueDictionary()
        )

    def check(self, token: FencingToken, resource: str | None = None) -> None:
        """Remember the token, unless the resource has seen a higher one.

        ``resource`` is the lock's name unless given; the first token of a resource binds it to that
        lock. What is done after the check is not covered by it: for that there is :meth:`guard`.
        Raises StaleTokenError; ConfigurationError for a token of another lock than the resource's;
        TypeError for what is no token.
        """
        name = checked_resource(token, resource)
        with self._mutex:
            highest = self._highest.get(name, token)
            if highest.lock != token.lock:
                raise other_lock(token, name, highest.lock)
            if highest > token:
                raise stale_token(token, name, int(highest))
            self._highest[name] = token

    @contextmanager
    def guard(self, token: FencingToken, resource: str | None = None) -> Iterator[None]:
        """Check the token, and let no other thread under a guard of the same resource until the body has ended. Raises as :meth:`check`."""
        name = checked_resource(token, resource)
        with self._mutex:
            guard = self._guards.get(name)
            if guard is None:
                guard = self._guards[name] = make_mutex()
        with guard:
            self.check(token, name)
            yield
