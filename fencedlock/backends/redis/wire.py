"""One open connection: the bytes of questions and answers on it."""

from __future__ import annotations

import _socket
import socket
import ssl
import struct
from typing import Any

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendMisconfiguredError

_CHUNK_BYTES = 4096

SIGNS = frozenset((b"+", b":"))
"""The first byte of an answer of a script, which consists of words or of a number."""

NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a call raises on a socket that does not wait, if it would have to."""

_MOST_LINE_BYTES = 1 << 16
"""The size of the longest line that is accepted. It is far more than any script answers, and than
any error message of Redis.
"""


def limit_waiting(sock: Any, timeout_seconds: float) -> None:
    """Let the kernel limit how long a call on this socket waits.

    A call that waits longer raises BlockingIOError. Python's own time limit polls before each call,
    which costs two more system calls for each round trip. Sockets that do not wait in the kernel
    need Python's limit.
    """
    # These are TLS, or the cooperative sockets of gevent and eventlet.
    if getattr(type(sock), "recv", None) is not _socket.socket.recv:
        sock.settimeout(timeout_seconds)
        return
    sock.settimeout(None)
    # A limit of 0 would mean no limit.
    limit = struct.pack("ll", int(timeout_seconds), max(1, int(timeout_seconds % 1 * 1e6)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def close_copy(connection: Any) -> None:
    """In a forked child, close its copy of a socket that the parent goes on using.

    A shutdown would end the connection of the parent, too.
    """
    sock = getattr(connection, "_sock", None)
    if sock is not None:
        sock.close()


class Wire:
    """One connection, used by one thread at a time."""

    __slots__ = (
        "__weakref__",
        "_connection",
        "answered",
        "connect_seconds",
        "sock",
        "timeout_seconds",
        "used_at",
    )

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.sock: Any = None
        self.timeout_seconds: float = -1.0
        """How long a call may wait for its answer. It is set by :meth:`limit`."""
        self.connect_seconds: float = 0.0
        """How long it took to open the connection, which takes some round trips."""
        self.used_at: float = 0.0
        """The local time at which the connection was opened, or at which the last question that
        was answered was asked.
        """
        self.answered: bool = False
        """True once a question was answered. If the connection breaks after that, the server may
        have closed it while it was idle.
        """

    def open(self, timeout_seconds: float) -> None:
        """Connect, authenticate and select the database. Each step may take ``timeout_seconds``."""
        connection, began_at = self._connection, now_seconds()
        connection.socket_timeout = connection.socket_connect_timeout = timeout_seconds
        connection.connect()
        sock = connection._sock
        if not hasattr(sock, "sock") or not hasattr(sock.sock, "recv"):
            raise BackendMisconfiguredError(
                f"a {type(connection).__mro__[1].__name__} connects without a socket, so it leads "
                "to no server that others can reach"
            )
        self.sock = sock.sock
        self.used_at = now_seconds()
        self.connect_seconds = self.used_at - began_at

    def limit(self, timeout_seconds: float) -> None:
        """Set how long each call may wait for its answer from now on."""
        limit_waiting(self.sock, timeout_seconds)
        self.timeout_seconds = timeout_seconds

    def ask_lines(self, packed: bytes, count: int) -> list[Any]:
        """Send ``count`` packed commands, and return their replies of one line each.

        An error that the server answered is returned as an exception object. redis-py's reader
        costs as much as the rest of the round trip, and our scripts answer with single lines.
        """
        self.sock.sendall(packed)
        return self.lines(self.sock.recv(_CHUNK_BYTES), count)

    def lines(self, received: bytes, count: int) -> list[Any]:
        """Return the replies to commands that were sent already. They begin with ``received``."""
        received = self._rest_of_lines(received, count)
        lines = received[:-2].split(b"\r\n")
        if len(lines) != count:
            raise ValueError(f"{len(lines)} lines, where {count} were asked for")
        return [self.reply(line) for line in lines]

    def _rest_of_lines(self, received: bytes, count: int) -> bytes:
        give_up_at = 0.0
        while not received.endswith(b"\r\n") or received.count(b"\r\n") < count:
            more = self.sock.recv(_CHUNK_BYTES)
            if not more:
                raise ConnectionResetError("Connection closed by server.")
            received += more
            give_up_at = give_up_at or now_seconds() + self.timeout_seconds
            if len(received) > _MOST_LINE_BYTES * count or now_seconds() > give_up_at:
                raise TimeoutError("the reply does not end")
        return received

    def reply(self, line: bytes) -> Any:
        kind = line[:1]
        # One line too many would be taken for the answer to the next question.
        if kind in SIGNS and b"\n" not in line:
            return line + b"\r\n"
        if kind == b"-":
            return self._connection._parser.parse_error(line[1:].decode(errors="replace"))
        raise ValueError(f"not a line that a script of ours answers: {line!r:.200}")

    def ask(self, packed: bytes) -> Any:
        """Send one packed command, and return its reply of any form.

        An error that the server answered is raised.
        """
        self._connection._sock.allow(self.timeout_seconds)
        self._connection.send_packed_command([packed], check_health=False)
        return self._connection.read_response(disable_decoding=True)

    def close(self) -> None:
        """Close the connection. A reply that is still under way is lost."""
        self._connection.disconnect()

    def hang_up(self) -> None:
        """End the connection, whoever uses it. A call that waits for its answer fails at once."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except (AttributeError, OSError):
            pass  # the connection is not open yet, or not any more

    def forget(self) -> None:
        """In a forked child, close the child's copy of the socket."""
        close_copy(self._connection)
