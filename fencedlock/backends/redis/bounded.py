"""A socket on which no answer takes for ever, whoever answers.

redis-py limits how long it waits for the next bytes. Somebody who sends one now and then, or goes
on without an end, would keep it reading: whatever listens there, it is no lock server, and a caller
who waits with a timeout must get away.
"""

from __future__ import annotations

from typing import Any

from fencedlock.clock import now_seconds

MOST_BYTES = 1 << 26
"""More than the longest answer that we ask for: a lock with some hundred thousand waiters."""


class BoundedSocket:
    """What redis-py reads from. Everything but reading is the real socket's."""

    def __init__(self, sock: Any, seconds: float) -> None:
        self.sock: Any = sock
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """The next answer has so long to come in."""
        self._give_up_at = now_seconds() + seconds
        self._bytes_left = MOST_BYTES

    def recv(self, size: int) -> bytes:
        received: bytes = self.sock.recv(size)
        self._count(len(received))
        return received

    def recv_into(self, *arguments: Any) -> int:
        size: int = self.sock.recv_into(*arguments)
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"an answer of more than {MOST_BYTES} bytes, without an end")
        if now_seconds() > self._give_up_at:
            raise TimeoutError("the answer did not end in time")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def bounded(connection_class: type) -> type:
    """The connection class with sockets of this kind."""

    class Bounded(connection_class):  # type: ignore[misc]
        def _connect(self) -> BoundedSocket:
            return BoundedSocket(super()._connect(), self.socket_timeout)

    return Bounded
