"""The connections of one client: few, opened like the user's own, and without retries beneath us.

redis-py's own retries, health checks and decoding are switched off on them: a retry that we don't know of would hide whether
a packet had an answer, and the scripts need no decoding. A user's pool is not used, for a small one would be drained by
the inbox; its settings are.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from fencedlock.backends.redis.bounded import bounded
from fencedlock.clock import now_seconds
from fencedlock.errors import (
    BackendError,
    BackendMisconfiguredError,
    BackendUnavailableError,
    ConfigurationError,
    FencedLockError,
)

MOST_CONNECTIONS = 32
"""Calls in flight at once; more threads than that take turns, for one server answers one at a time anyway."""

IDLE_SECONDS = 1.0
"""A connection that no call has needed for so long is closed, but for one."""

_CHUNK_BYTES = 4096
_LINE_BYTES = 256
"""An answer of ours is shorter than that; and Python makes room for so little sooner than for more."""

_SIGNS = frozenset((b"+", b":"))
"""What an answer of ours begins with, of words or of a number."""

_MOST_LINE_BYTES = 1 << 16
"""Far more than any script of ours answers, or Redis says of an error."""

_TEMPORARY = ("LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN")
_NOT_OURS_TO_COPY = ("maint_notifications", "oss_cluster_maint", "orig_", "maintenance_", "event_dispatcher", "himport")


class Connector:
    """Opens connections with the settings of a ready client of redis-py or valkey-py."""

    def __init__(self, client: Any) -> None:
        pool: Any = getattr(client, "connection_pool", None)
        connection_class = getattr(pool, "connection_class", None)
        if connection_class is None:
            raise ConfigurationError(f"can't lock through {client!r}: pass a URL or a redis.Redis (valkey.Valkey) object")
        package = _package_of(connection_class)
        if "asyncio" in connection_class.__module__:
            raise ConfigurationError(f"this {type(client).__name__} is an asyncio client: pass a {package}.Redis of the blocking kind")
        self.exceptions: ModuleType = import_module(f"{package}.exceptions")
        self._class = bounded(connection_class)
        settings = {key: value for key, value in pool.connection_kwargs.items() if not key.startswith(_NOT_OURS_TO_COPY)}
        self.socket_timeout_seconds: float | None = settings.get("socket_timeout")
        retry = import_module(f"{package}.retry").Retry(import_module(f"{package}.backoff").NoBackoff(), 0)
        settings.update(decode_responses=False, protocol=2, retry=retry, retry_on_timeout=False, retry_on_error=[], health_check_interval=0)
        self._settings = settings

    def __call__(self) -> Any:
        """A new connection object; nothing is opened yet."""
        return self._class(**self._settings)

    def is_cut(self, error: Exception) -> bool:
        """True if the connection broke, other than by silence."""
        return isinstance(error, (self.exceptions.ConnectionError, OSError)) and not isinstance(error, TimeoutError)

    def error_for(self, error: Exception) -> FencedLockError:
        """Our error for one of redis-py's, or for what its parser made of a garbled reply."""
        if isinstance(error, FencedLockError):
            return error  # an embedded server that did not start says so itself
        kinds = self.exceptions
        words = str(error)
        if "unauthenticated" in words or "Authentication required" in words:
            return BackendMisconfiguredError(f"the lock server wants a password, which the URL or client does not give: {words}")
        if isinstance(error, (kinds.AuthenticationError, kinds.AuthorizationError, kinds.NoPermissionError)) or "can't run this" in words:
            return BackendMisconfiguredError(f"the lock server refused its user: {words}")
        if isinstance(error, (kinds.ConnectionError, kinds.TimeoutError, OSError)) or words.startswith(_TEMPORARY):
            return BackendUnavailableError(f"the lock server gave no answer: {words}")
        if isinstance(error, kinds.ResponseError):
            return BackendError(f"the lock server refused: {words}")
        return BackendError(f"the lock server's reply makes no sense: {words}")


def _package_of(connection_class: type) -> str:
    for cls in connection_class.__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("redis", "valkey"):
            return package
    raise ConfigurationError(f"can't lock through connections of {connection_class!r}: they are neither redis-py's nor valkey-py's")


def limit_waiting(sock: Any, timeout_seconds: float) -> None:
    """Let the kernel limit how long a call on this socket waits; one that waits longer raises BlockingIOError.

    Python's own time limit polls before each call, which is two system calls more for each round trip. TLS needs it.
    """
    if type(sock) is not socket.socket:
        sock.settimeout(timeout_seconds)
        return
    sock.settimeout(None)
    limit = struct.pack("ll", int(timeout_seconds), max(1, int(timeout_seconds % 1 * 1e6)))  # 0 would mean for ever
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def close_copy(connection: Any) -> None:
    """In a forked child: close its copy of a socket, which the parent goes on using; a shutdown would end the parent's too."""
    sock = getattr(connection, "_sock", None)
    if sock is not None:
        sock.close()


class Wire:
    """One connection, used by one thread at a time."""

    __slots__ = ("_connection", "rested", "sock", "timeout_seconds")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.sock: Any = None
        self.timeout_seconds: float = -1.0
        """How long a call may wait for its answer; set by :meth:`open`."""
        self.rested: bool | None = None
        """None before its first answer, False after each, and True once it was seen to be idle. If it breaks after its first answer,
        the server may have closed it while it was idle.
        """

    def open(self, timeout_seconds: float) -> None:
        """Connect, authenticate and select the database, if that is not done, and set the time limit of what follows."""
        if self.sock is None:
            connection = self._connection
            connection.socket_timeout = connection.socket_connect_timeout = timeout_seconds
            connection.connect()
            self.sock = connection._sock.sock
        limit_waiting(self.sock, timeout_seconds)
        self.timeout_seconds = timeout_seconds

    def ask_lines(self, packed: bytes, count: int) -> list[Any]:
        """Send so many packed commands, and read their replies of one line each; an error that the server answered is returned.

        redis-py's reader costs as much as the rest of the round trip, and our scripts answer with single lines.
        """
        self.sock.sendall(packed)
        return self.lines(self.sock.recv(_CHUNK_BYTES), count)

    def lines(self, received: bytes, count: int) -> list[Any]:
        """The same for commands that are sent, and whose replies begin with what was received."""
        received = self._rest_of_lines(received, count)
        lines = received[:-2].split(b"\r\n")
        if len(lines) != count:
            raise ValueError(f"{len(lines)} lines, where {count} were asked for")
        return [self._reply(line) for line in lines]

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

    def _reply(self, line: bytes) -> Any:
        kind = line[:1]
        if kind in _SIGNS and b"\n" not in line:  # one line too many would be taken for the next question's answer
            return line + b"\r\n"
        if kind == b"-":
            return self._connection._parser.parse_error(line[1:].decode(errors="replace"))
        raise ValueError(f"not a line that a script of ours answers: {line!r:.200}")

    def ask(self, packed: bytes) -> Any:
        """Send one packed command and read its reply of any form; an error that the server answered is raised."""
        self._connection._sock.allow(self.timeout_seconds)
        self._connection.send_packed_command([packed], check_health=False)
        return self._connection.read_response(disable_decoding=True)

    def close(self) -> None:
        """Close it; a reply that is still under way is lost."""
        self._connection.disconnect()

    def forget(self) -> None:
        """In a forked child: close the child's copy of the socket."""
        close_copy(self._connection)


class Connections:
    """The connections for calls. A call takes one that is idle, or opens one, or waits for one."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._idle: deque[Wire] = deque()
        self._open = 0
        self._returned = threading.Condition()
        self._closed = False
        self._attention = 0
        """How many threads wait for a connection that is given back; and one more once all are to be closed."""
        self._trim_at = 0.0

    def ask(self, packed: bytes, timeout_seconds: float) -> Any:
        """Send one packed command and read its reply of any form. Raises BackendError."""
        return self.converse(packed, timeout_seconds, 1, Wire.ask)[0]

    def converse(
        self, packed: bytes, timeout_seconds: float, attempts: int = 1, talk: Callable[[Wire, bytes], Any] | None = None
    ) -> tuple[Any, int]:
        """What came of one of :class:`Wire`'s ways to ask, and how often it was tried; without one, a line as of :meth:`Wire.ask_lines`.

        Raises BackendUnavailableError when the last attempt had no answer either.
        """
        sent = 1
        while True:
            wire: Wire | None = None
            try:
                try:
                    wire = self._idle.pop()
                except IndexError:
                    wire = self._take(timeout_seconds)
                if wire.timeout_seconds != timeout_seconds:
                    wire.open(timeout_seconds)
                if talk is None:  # spelt out, for it is on the way of each acquisition
                    sock = wire.sock
                    sock.sendall(packed)
                    reply = sock.recv(_LINE_BYTES)
                    if not (reply[:1] in _SIGNS and reply.find(b"\n") == len(reply) - 1):
                        reply = wire.lines(reply, 1)[0]
                else:
                    reply = talk(wire, packed)
                wire.rested = False
                self._idle.append(wire)
            except BaseException as error:
                attempts = self._attempts_after(error, wire, sent, attempts)
                sent += 1
            else:
                if self._attention:
                    self._attend()
                return reply, sent

    def _attempts_after(self, error: BaseException, wire: Wire | None, sent: int, attempts: int) -> int:
        """How many attempts there are now that one has failed; raises an error if that was the last one."""
        if wire is not None:
            self._drop(wire)  # whatever it was: a reply that is still to come must not be taken for the next one's
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, BlockingIOError):
            error = TimeoutError("no reply in time")
        if wire is not None and wire.rested is not None and self._connector.is_cut(error) and sent <= attempts:
            # Everything that we send may be repeated: so what was sent through a connection that the server had closed while it
            # was idle is sent again at once, besides the attempts asked for.
            self.close_idle()
            return attempts + 1
        if sent >= attempts:
            ours = self._connector.error_for(error)
            raise ours from (None if ours is error else error)
        return attempts

    def _take(self, timeout_seconds: float) -> Wire:
        with self._returned:
            self._attention += 1
            try:
                if not self._returned.wait_for(lambda: self._idle or self._open < MOST_CONNECTIONS, timeout_seconds):
                    raise BackendUnavailableError(f"all {MOST_CONNECTIONS} connections to the lock server wait for answers")
            finally:
                self._attention -= 1
            try:
                return self._idle.pop()
            except IndexError:
                self._open += 1
                return Wire(self._connector())

    def _drop(self, wire: Wire) -> None:
        wire.close()
        try:
            self._idle.remove(wire)  # Ctrl-C just after it was given back
        except ValueError:
            pass
        with self._returned:
            self._open -= 1
        self._wake_one()

    def _attend(self) -> None:
        if self._closed:
            self.close_idle()
        else:
            self._wake_one()

    def _wake_one(self) -> None:
        with self._returned:
            self._returned.notify()

    def trim(self, now: float) -> float | None:
        """Close what no call has needed for a while, but for one; when to look again, None if only one is left."""
        if now >= self._trim_at:
            self._trim_at = now + IDLE_SECONDS
            for wire in list(self._idle)[:-1]:  # the last one is the next to be taken
                if wire.rested:
                    try:
                        self._idle.remove(wire)
                    except ValueError:
                        continue  # taken meanwhile
                    self._drop(wire)
                wire.rested = True
        return self._trim_at if len(self._idle) > 1 else None

    def close(self) -> None:
        """Close all that are idle, and the others once their calls have ended."""
        with self._returned:
            self._closed = True
            self._attention += 1
        self.close_idle()

    def forget(self) -> None:
        """In a forked child: close the copies of what is idle, without a word to the server."""
        for wire in self._idle:
            wire.forget()
        self._idle.clear()

    def close_idle(self) -> None:
        """Close all that are idle."""
        while self._idle:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                break
