"""A fence in this process's memory, for services that keep their state there, and for tests."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from fencedlock.fencing.base import checked_resource, other_lock, stale_token
from fencedlock.runtime.interrupts import make_mutex
from fencedlock.token import FencingToken


class MonotonicFence:
    """A fence in memory: it knows the highest token that this process has seen of each resource.

    It is thread-safe. Its tokens are forgotten when the process ends.
    """

    def __init__(self) -> None:
        self._mutex = make_mutex()
        self._highest: dict[str, FencingToken] = {}
        self._guards: weakref.WeakValueDictionary[str, threading.RLock] = (
            weakref.WeakValueDictionary()
        )

    def check(self, token: FencingToken, resource: str | None = None) -> None:
        """Check the token and remember it; refuse it if the resource has seen a higher one.

        ``resource`` is the lock's name unless given. The first token of a resource binds it to that
        lock. The check does not cover what is done after it: use :meth:`guard` for that.

        Raises StaleTokenError if the resource has seen a higher token, ConfigurationError if the
        token is of another lock than the resource's, and TypeError if it is not a FencingToken.
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
        """Check the token, and keep other threads out of the resource until the body has ended.

        It keeps out those that use a guard of the same resource. Raises the errors of
        :meth:`check`.
        """
        name = checked_resource(token, resource)
        with self._mutex:
            guard = self._guards.get(name)
            if guard is None:
                guard = self._guards[name] = make_mutex()
        with guard:
            self.check(token, name)
            yield
