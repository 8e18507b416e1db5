"""A socket that limits how long and how large an answer may be, whoever answers.

redis-py limits only how long it waits for the next bytes. A peer that sends a byte now and then, or
that sends without end, would keep it reading. Such a peer is no lock server, and a caller with a
timeout must not wait for it.
"""

from __future__ import annotations

from typing import Any

from fencedlock.clock import now_seconds

MOST_BYTES = 1 << 26
"""The size of the largest answer that is accepted. The longest answer that the library asks for is
shorter: it describes a lock with some hundred thousand waiters.
"""


class BoundedSocket:
    """The socket that redis-py reads from. It passes everything but reading to the real socket."""

    def __init__(self, sock: Any, seconds: float) -> None:
        self.sock: Any = sock
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Expect the next answer. It has to be complete within this time from now."""
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
    """Return a subclass of the connection class that uses bounded sockets."""

    class Bounded(connection_class):  # type: ignore[misc]
        def _connect(self) -> BoundedSocket:
            return BoundedSocket(super()._connect(), self.socket_timeout)

    return Bounded
