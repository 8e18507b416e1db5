"""Connections through a ready client of the package etcd3.

Its channel, metadata and timeout are read at every call. Its stubs and locks are never used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from fencedlock.backends.etcd.connections import Connections, core
from fencedlock.backends.etcd.grpc_repairs import make_interruptible
from fencedlock.backends.etcd.settings import Settings
from fencedlock.errors import BackendMisconfiguredError


def is_ready_client(target: Any) -> bool:
    """Return True for a client of the package etcd3. This imports nothing."""
    return any(
        cls.__module__.partition(".")[0] == "etcd3" for cls in type(target).__mro__
    ) and hasattr(target, "channel")


class ReadyConnections(Connections):
    """Makes calls through the channel of an ``etcd3.client()``.

    The channel belongs to the owner of that client and is never closed here.
    """

    def __init__(self, client: Any, pid: int) -> None:
        super().__init__(Settings((str(getattr(client, "_url", "etcd3's endpoint")),)))
        self._client = client
        self._pid = pid
        self._known_channel: Any = None

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._client.metadata or ())

    def _try_all(
        self, attempt: Callable[[int, float], Any], timeout_seconds: float, attempts: int
    ) -> tuple[Any, int]:
        longest = math.inf if self._client.timeout is None else self._client.timeout
        return super()._try_all(attempt, min(timeout_seconds, longest), attempts)

    def _callable(self, index: int, method: Any) -> Any:
        if self._client.channel is not self._known_channel:
            self._known_channel = self._client.channel
            make_interruptible(self._known_channel)
            self._calls.clear()
        return super()._callable(index, method)

    def _channel(self, index: int) -> Any:  # noqa: ARG002 - there is only one channel
        if os.getpid() != self._pid:
            raise BackendMisconfiguredError(
                "this process was forked from the one that made the etcd3 client, and gRPC does "
                "not survive that: make a client here, and connect() with it; or connect with an "
                "etcd:// URL, which works on both sides of a fork"
            )
        self._raise_if_closed()
        # Record that gRPC is used, although the channel is not ours. A copy of this process that is
        # forked in C has only half of gRPC, and would be aborted if it connected by a URL.
        core.use()
        return self._client.channel

    def _hang_up(self) -> bool:
        self._calls.clear()
        for stream in list(self._streams):
            stream.cancel()
        return False
