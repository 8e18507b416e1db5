"""The connections of one client. They are few, and have the settings of the user's own client.

redis-py's own retries, health checks and decoding are switched off on them. A retry that the
library does not know of would hide whether a packet had an answer, and the scripts need no
decoding. The user's pool is not used, because the inbox would drain a small one. The settings of
the pool are read each time that a connection is opened, so that a changed password takes effect.
"""

from __future__ import annotations

import _socket
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from fencedlock.backends.redis.bounded import bounded
from fencedlock.backends.redis.probes import speaks_plainly, speaks_tls
from fencedlock.backends.redis.refusals import Meaning, meaning_of, tls_fault, words_of
from fencedlock.clock import now_seconds
from fencedlock.errors import (
    BackendError,
    BackendMisconfiguredError,
    BackendUnavailableError,
    ConfigurationError,
    FencedLockError,
)
from fencedlock.runtime.bell import Bell
from fencedlock.runtime.cooperation import raise_if_patched_too_late
from fencedlock.runtime.interrupts import innermost_module, raised_by_handler
from fencedlock.runtime.process import CopiedProcessError, own
from fencedlock.runtime.threads import Worker, make_mutex

MOST_CONNECTIONS = 32
"""The number of calls that may be in flight at once. If there are more threads, they take turns,
because one server answers one call at a time anyway.
"""

IDLE_SECONDS = 1.0
"""The time after which a connection that no call has needed is closed, unless it is the last."""

RESTED_SECONDS = 1.0
"""The time after which a NAT or a load balancer on the way may have silently forgotten an idle
connection.
"""

LEASH_SECONDS = 0.25
"""The time to wait for the answer to the first question on a connection that was idle for that
long, or twice the time that opening it took, if this is longer. Then the question is asked again
through a new connection.
"""

LEAST_WAIT_SECONDS = 0.01

PROBE_AGAIN_SECONDS = 30.0
"""The time for which a server that was found to speak our protocol is not probed again, while no
connection can be opened.
"""

LOOK_SECONDS = 0.05
"""The interval at which a thread that waits for a connection checks whether there is one. Usually
it is woken sooner, but an interrupt may lose a wake-up.
"""

_CHUNK_BYTES = 4096
_LINE_BYTES = 256
"""The size of the buffer for one answer of a script, which is shorter. Python allocates a small
buffer faster than a large one.
"""

_SIGNS = frozenset((b"+", b":"))
"""The first byte of an answer of a script, which consists of words or of a number."""

_MOST_LINE_BYTES = 1 << 16
"""The size of the longest line that is accepted. It is far more than any script answers, and than
any error message of Redis.
"""

_NOT_OURS_TO_COPY = (
    "maint_notifications",
    "oss_cluster_maint",
    "orig_",
    "maintenance_",
    "event_dispatcher",
    "himport",
)
_OUR_SIDE = (
    "fencedlock",
    "redis",
    "valkey",
    "hiredis",
    "libvalkey",
    "socket",
    "ssl",
    "select",
    "selectors",
    "gevent",
    "eventlet",
    "greenlet",
)
"""The packages on the client's side of a connection. What they raise is an I/O error, or the result
of a garbled answer.
"""


class Connector:
    """Opens connections with the settings of a ready client of redis-py or valkey-py."""

    def __init__(self, client: Any) -> None:
        self._client = client
        connection_class = getattr(self._pool, "connection_class", None)
        if connection_class is None:
            raise ConfigurationError(
                f"can't lock through a {type(client).__name__}: pass a URL or a redis.Redis "
                "(valkey.Valkey) object"
            )
        if any(cls.__module__.partition(".")[0] == "fakeredis" for cls in connection_class.__mro__):
            raise ConfigurationError(
                "fakeredis keeps its data inside this process, so a lock on it would exclude "
                "nobody else: use a real server, for example fencedlock.connect('embedded://'), "
                "which starts one for tests"
            )
        package = _package_of(connection_class)
        if "asyncio" in connection_class.__module__:
            raise ConfigurationError(
                f"this {type(client).__name__} is an asyncio client: pass a {package}.Redis of the "
                "blocking kind"
            )
        self.exceptions: ModuleType = import_module(f"{package}.exceptions")
        self._package = package
        self._classes: dict[type, type] = {}
        self.proved: bool = False
        """True once a connection was opened, which shows that both sides speak one protocol."""
        self._probe_again_at = 0.0
        self.socket_timeout_seconds: float | None = self._pool.connection_kwargs.get(
            "socket_timeout"
        )

    @property
    def _pool(self) -> Any:
        return getattr(self._client, "connection_pool", None)

    def __call__(self) -> Any:
        """Return a new connection object with the present settings. It is not opened yet."""
        raise_if_patched_too_late()
        pool = self._pool
        settings = {
            key: value
            for key, value in pool.connection_kwargs.items()
            if not key.startswith(_NOT_OURS_TO_COPY)
        }
        retry = import_module(f"{self._package}.retry").Retry(
            import_module(f"{self._package}.backoff").NoBackoff(), 0
        )
        settings.update(
            decode_responses=False,
            protocol=2,
            retry=retry,
            retry_on_timeout=False,
            retry_on_error=[],
            health_check_interval=0,
        )
        cls = self._classes.get(pool.connection_class)
        if cls is None:
            cls = self._classes[pool.connection_class] = bounded(pool.connection_class)
        return cls(**settings)

    @property
    def where(self) -> str:
        """The server as it may be shown, without the password.

        This is its host, port and database, or the path of its socket.
        """
        settings = self._pool.connection_kwargs
        database = settings.get("db") or 0
        if settings.get("path"):
            return f"unix:{settings['path']} (database {database})"
        host = str(settings.get("host", "localhost"))
        shown = f"[{host}]" if ":" in host else host
        return f"{shown}:{settings.get('port', 6379)}/{database}"

    def is_cut(self, error: BaseException) -> bool:
        """Return True if the connection broke, and did not just stay silent."""
        return isinstance(error, (self.exceptions.ConnectionError, OSError)) and not isinstance(
            error, (TimeoutError, BlockingIOError)
        )

    def is_silent(self, error: BaseException) -> bool:
        """Return True if no answer came in time."""
        return isinstance(error, (BlockingIOError, TimeoutError, self.exceptions.TimeoutError))

    def is_ours(self, error: BaseException) -> bool:
        """Return True if the connection or the server failed.

        Return False for what a signal handler or the program itself has raised.
        """
        if (
            not isinstance(error, Exception)
            or isinstance(error, CopiedProcessError)
            or raised_by_handler(error) is not None
        ):
            return False
        if isinstance(error, (OSError, self.exceptions.RedisError, FencedLockError)):
            return True
        # For garbage, a parser raises builtin exceptions. An exception of a class of the program
        # comes from the program, wherever it was raised.
        return (
            type(error).__module__ == "builtins"
            and innermost_module(error).partition(".")[0] in _OUR_SIDE
        )

    def connecting_error(self, error: BaseException) -> FencedLockError:
        """Return our error for what prevented a connection from being opened.

        A credential provider or a connection class may raise anything.
        """
        if self.is_ours(error):
            assert isinstance(error, Exception)
            return self._wrong_protocol(error) or self.error_for(error)
        return BackendUnavailableError(
            f"can't connect to the lock server at {self.where}: {type(error).__name__}: "
            f"{words_of(error)}"
        )

    def raise_if_plain(self) -> None:
        """Raise BackendMisconfiguredError if the client uses TLS and the server does not.

        Such a server says nothing, because it waits for more.
        """
        if (
            "SSL" in self._pool.connection_class.__name__
            and self._may_probe()
            and speaks_plainly(*self._host_and_port)
        ):
            raise self._no_tls()

    def _no_tls(self) -> BackendMisconfiguredError:
        return BackendMisconfiguredError(
            f"the lock server at {self.where} does not speak TLS at this port: use redis://, or "
            "the port for TLS"
        )

    @property
    def _host_and_port(self) -> tuple[str, int]:
        settings = self._pool.connection_kwargs
        return settings.get("host", "localhost"), settings.get("port", 6379)

    def _may_probe(self) -> bool:
        """Return False if a probe can't find out anything new.

        A probe may take a second, which threads that wait for a connection may not have.
        """
        return not (
            self.proved
            or self._pool.connection_kwargs.get("path")
            or now_seconds() < self._probe_again_at
        )

    def _wrong_protocol(self, error: Exception) -> FencedLockError | None:
        """Return an error if the port speaks TLS and the client does not, or the other way round.

        Return None if this is not why connecting failed.
        """
        if isinstance(error, FencedLockError) or "refused" in str(error) or not self._may_probe():
            return None
        with_tls = "SSL" in self._pool.connection_class.__name__
        if with_tls and self.is_silent(error) and speaks_plainly(*self._host_and_port):
            return self._no_tls()
        if not with_tls and self.is_cut(error) and speaks_tls(*self._host_and_port):
            return BackendMisconfiguredError(
                f"the lock server at {self.where} speaks TLS at this port: use rediss://"
            )
        self._probe_again_at = now_seconds() + PROBE_AGAIN_SECONDS
        return None

    # There is one return for each kind of error.
    def error_for(self, error: Exception) -> FencedLockError:  # noqa: PLR0911
        """Return our error for one of redis-py's, or of its parser's after a garbled reply."""
        if isinstance(error, FencedLockError):
            return error  # an embedded server that did not start raises this error itself
        where, words = (
            f"the lock server at {self.where}",
            "no reply in time" if isinstance(error, BlockingIOError) else words_of(error),
        )
        fault = tls_fault(error)
        if fault:
            return BackendMisconfiguredError(f"{where} can't be reached: {fault}")
        meaning, advice = meaning_of(error)
        said = f"{words}; {advice}" if advice else words
        if meaning in (Meaning.PASSES, Meaning.MOVED_AWAY):
            return BackendUnavailableError(f"{where} can't serve now: {said}")
        if meaning is Meaning.MISCONFIGURED:
            return BackendMisconfiguredError(f"{where} refuses: {said}")
        if self.is_silent(error):
            return BackendUnavailableError(f"{where} gave no answer: {words}")
        if isinstance(error, (self.exceptions.ConnectionError, OSError)):
            return BackendUnavailableError(f"{where} gave no answer: {words}")
        if isinstance(error, self.exceptions.ResponseError):
            return BackendError(f"{where} refused: {words}")
        return BackendError(
            f"the reply of {where} makes no sense, so it may be no Redis server: {words}"
        )


def _package_of(connection_class: type) -> str:
    for cls in connection_class.__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("redis", "valkey"):
            return package
    raise ConfigurationError(
        f"can't lock through connections of {connection_class!r}: they are neither redis-py's nor "
        "valkey-py's"
    )


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
        # One line too many would be taken for the answer to the next question.
        if kind in _SIGNS and b"\n" not in line:
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


class _Claimant:
    """A thread that waits for a connection."""

    __slots__ = ("bell", "error")

    def __init__(self) -> None:
        self.bell: Bell = Bell()
        self.error: BaseException | None = None
        """Why no connection could be opened."""


class Connections:
    """The connections for calls.

    A call takes an idle connection, has one opened, or waits for one.

    There is no separate counter of connections, so one that an interrupt drops does not count any
    more as soon as it is garbage-collected. Connections are opened by threads of their own, because
    looking up a name, TLS and a credential provider can take longer than a caller has.
    """

    def __init__(self, connector: Connector, connect_timeout_seconds: float) -> None:
        self._connector = connector
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: deque[Wire] = deque()
        self._known: list[weakref.ref[Wire]] = []
        """Every connection that may be open, idle or not."""
        self._dials: dict[_Dial, None] = {}
        """The attempts to open a connection that have not ended, oldest first."""
        self._failed_dials = 0
        """How many attempts have failed while younger ones went on. The count restarts when an
        attempt succeeds or the youngest one fails.
        """
        self._failure: FencedLockError | None = None
        """The error of the last of these."""
        self._dialled_at = 0.0
        self._connect_seconds = 0.0
        """How long it took to open the last connection."""
        self._mutex = make_mutex()
        self._claimants: dict[_Claimant, None] = {}
        """The threads that wait for a connection, in order of arrival."""
        self._closed = False
        self._trim_at = 0.0
        self.on_new: Callable[[], object] = _do_nothing
        """Called when a connection was opened, which may lead to another server than before."""
        self.on_switch: Callable[[], object] = _do_nothing
        """Called when the server turns out to be no longer the master."""

    def ask(self, packed: bytes, timeout_seconds: float) -> Any:
        """Send one packed command, and return its reply of any form. Raises BackendError."""
        reply = self.converse(packed, timeout_seconds, now_seconds(), 1, self._ask)[0]
        if isinstance(reply, Exception):
            raise self.refusal(reply) from reply
        return reply

    def _ask(self, wire: Wire, packed: bytes) -> Any:
        """Do what :meth:`Wire.ask` does, but return an error that the server answered.

        The connection stays in use after such an error.
        """
        try:
            return wire.ask(packed)
        except self._connector.exceptions.ResponseError as error:
            return error

    def converse(  # noqa: C901, PLR0912 - spelt out, because each call runs it
        self,
        packed: bytes,
        timeout_seconds: float,
        now: float,
        attempts: int = 1,
        talk: Callable[[Wire, bytes], Any] | None = None,
        repack: Callable[[], bytes] | None = None,
    ) -> tuple[Any, int]:
        """Send packed commands, and return the reply and how often they were sent.

        ``talk`` is one of :class:`Wire`'s ways to ask. Without it, the reply is one line, like
        those of :meth:`Wire.ask_lines`. ``now`` is the local time. Each of the ``attempts`` waits
        up to ``timeout_seconds`` for its answer. ``repack`` makes the same commands anew, for a
        connection that was opened meanwhile. It may lead to another server, which has to be told of
        higher floors.

        Raises BackendUnavailableError if even the last attempt had no answer. What a signal handler
        raises is raised unchanged.
        """
        sent = 0
        began_at = now
        until = now + timeout_seconds
        waited = False
        while True:
            wire: Wire | None = None
            try:
                if not own[0]:
                    raise CopiedProcessError  # the connections are the original's
                try:
                    wire = self._idle.pop()
                except IndexError:
                    wire, waited = self._take(until - now_seconds()), True
                seconds = timeout_seconds
                if now - wire.used_at > RESTED_SECONDS or waited:
                    seconds = self._leash(wire, now, until)
                    if waited and repack is not None:
                        packed = repack()
                if wire.timeout_seconds != seconds:
                    wire.limit(seconds)
                sent += 1
                if talk is None:  # spelt out, because each acquisition runs it
                    sock = wire.sock
                    sock.sendall(packed)
                    reply = sock.recv(_LINE_BYTES)
                    if not (
                        reply[:1] in _SIGNS
                        and reply[-2:] == b"\r\n"
                        and reply.find(b"\n") == len(reply) - 1
                    ):
                        reply = wire.lines(reply, 1)[0]
                else:
                    reply = talk(wire, packed)
                if not own[0]:
                    # A signal handler has forked in the middle, so the reply is for the original.
                    raise CopiedProcessError
                wire.used_at = now
                wire.answered = True
                self._idle.append(wire)
            except BaseException as error:
                now, until, attempts = self._after_failure(
                    error, wire, sent, attempts, timeout_seconds, until, began_at
                )
                waited = True
            else:
                if self._claimants or self._closed:
                    self._attend()
                return reply, sent

    def _leash(self, wire: Wire, now: float, until: float) -> float:
        """Return how long this question may wait for its answer."""
        left = max(until - now_seconds(), LEAST_WAIT_SECONDS)
        if now - wire.used_at <= RESTED_SECONDS:
            return left
        return min(left, max(LEASH_SECONDS, 2 * wire.connect_seconds))

    def _after_failure(
        self,
        error: BaseException,
        wire: Wire | None,
        sent: int,
        attempts: int,
        timeout_seconds: float,
        until: float,
        began_at: float,
    ) -> tuple[float, float, int]:
        """Return when the next attempt begins and has to end, and how many are left, including it.

        Raise the error if there is no next attempt.

        Everything that the library sends may be repeated. If an idle connection was closed by the
        server or forgotten by something on the way, what was sent through it is sent again at once,
        in addition to the attempts that were asked for.
        """
        ours: FencedLockError | None = None
        try:
            if wire is not None:
                self._drop(wire)
            if not self._connector.is_ours(error):
                raise raised_by_handler(error) or error
            assert isinstance(error, Exception)
            if wire is not None:
                now, silent, cut = (
                    now_seconds(),
                    self._connector.is_silent(error),
                    self._connector.is_cut(error),
                )
                if now < until and (
                    (cut and wire.answered) or (silent and wire.timeout_seconds < timeout_seconds)
                ):
                    self.close_idle()
                    return now, until, attempts
                if attempts > 1 and (silent or cut):
                    return now, now + timeout_seconds, attempts - 1
            ours = self.refusal(error)
            if isinstance(ours, BackendUnavailableError):
                ours.sent, ours.asked_at = sent > 0, began_at
            raise ours from (None if ours is error else error)
        finally:
            # An error that is kept in a variable of a frame of its traceback keeps all of these
            # frames alive.
            del ours, error

    def refusal(self, error: Exception) -> FencedLockError:
        """Return our error for one that the server answered or the connection raised.

        If the server is no longer the master, end all connections.
        """
        if meaning_of(error)[0] is Meaning.MOVED_AWAY:
            self.hang_up()
            self.on_switch()
        return self._connector.error_for(error)

    # --- taking, opening and closing

    def _take(self, timeout_seconds: float) -> Wire:
        """Return a connection that nobody uses.

        Raises the error that prevents a connection from being opened, or BackendUnavailableError
        when time runs out.
        """
        until = now_seconds() + timeout_seconds
        claimant = _Claimant()
        try:
            self._claimants[claimant] = None
            while True:
                try:
                    return self._idle.pop()
                except IndexError:
                    pass
                if self._closed:
                    raise BackendUnavailableError(
                        f"the connections to the lock server at {self._connector.where} are closed"
                    )
                if claimant.error is not None:
                    raise claimant.error
                left = until - now_seconds()
                if left <= 0:
                    raise self._no_connection()
                self._dial_if_needed()
                claimant.bell.wait(min(left, LOOK_SECONDS))
        finally:
            self._claimants.pop(claimant, None)
            claimant.error = None  # as in _after_failure

    def _no_connection(self) -> FencedLockError:
        where = self._connector.where
        failure, self._failure = self._failure, None
        if failure is not None:
            return failure
        if self._dials:
            return BackendUnavailableError(
                f"the lock server at {where} could not be connected to in time: no answer from its "
                "name or address"
            )
        return BackendUnavailableError(
            f"all {MOST_CONNECTIONS} connections to the lock server at {where} wait for answers"
        )

    def _dial_if_needed(self) -> None:
        """Start to open a connection if too few are being opened, and if one more is allowed.

        Too few means fewer than there are waiting threads. Apart from that, an attempt that takes
        far longer than the last successful one may never get an answer, although the next attempt
        would. So another attempt is started beside it, after pauses that double.

        The pauses also double with each failed attempt. Otherwise, if all attempts take long to
        fail, there would always be a younger one that goes on. With longer pauses, one of them is
        soon the youngest when it fails, and a waiting thread is told the reason.
        """
        with self._mutex:
            for dial in list(self._dials):
                dial.start()  # does nothing, unless an interrupt came before its first call
            now, spare = now_seconds(), len(self._dials) - len(self._claimants)
            doublings = min(spare + self._failed_dials, MOST_CONNECTIONS)
            if (
                spare >= 0
                and now
                < self._dialled_at + max(LEASH_SECONDS, 2 * self._connect_seconds) * 2**doublings
            ):
                return
            self._known = [known for known in self._known if known() is not None]
            if len(self._known) >= MOST_CONNECTIONS:
                return
            wire = Wire(self._connector())
            dial = _Dial(self, wire, self._connect_timeout_seconds, beside_others=spare >= 0)
            self._known.append(weakref.ref(wire))
            self._dials[dial] = None
            self._dialled_at = now
            dial.start()

    def dialled(self, dial: _Dial, wire: Wire, error: BaseException | None) -> None:
        """Record that an attempt to open a connection has ended.

        If it failed because the server is unavailable, no waiting thread is told of that while a
        younger attempt goes on and there are enough attempts for all of these threads.
        """
        with self._mutex:
            is_youngest = next(reversed(self._dials), None) is dial
            self._dials.pop(dial, None)
        if error is None:
            self._failed_dials, self._failure = 0, None
            self._connect_seconds = wire.connect_seconds
            self._connector.proved = True
            self.on_new()
            self._idle.append(wire)
            self._attend()
            return
        self._end(wire)
        ours = self._connector.connecting_error(error)
        if ours is not error:
            ours.__cause__ = error
        if (
            isinstance(ours, BackendUnavailableError)
            and not is_youngest
            and len(self._dials) >= len(self._claimants)
        ):
            self._failed_dials += 1
            self._failure = ours
            return
        self._failed_dials, self._failure = 0, None
        for claimant in list(self._claimants):
            if claimant.error is None:
                claimant.error = ours
                claimant.bell.ring()
                return

    def _drop(self, wire: Wire) -> None:
        try:
            self._idle.remove(wire)  # it is there if Ctrl-C came just after it was given back
        except ValueError:
            pass
        self._end(wire)
        self._attend()

    def _end(self, wire: Wire) -> None:
        wire.close()
        with self._mutex:
            self._known = [known for known in self._known if known() not in (None, wire)]

    def _attend(self) -> None:
        """Tell a waiting thread that a connection is idle, or that one more may be opened.

        If the client is closed, close the idle connections instead.
        """
        if self._closed:
            self.close_idle()
            return
        for claimant in list(self._claimants):
            claimant.bell.ring()
            return

    def trim(self, now: float) -> float | None:
        """Close idle connections that no call has needed for a while, except for the last.

        Return the local time of the next call, or None if no more than one is left.
        """
        if now >= self._trim_at:
            self._trim_at = now + IDLE_SECONDS
            for wire in list(self._idle)[:-1]:  # the last one is the next to be taken
                if now - wire.used_at >= IDLE_SECONDS:
                    try:
                        self._idle.remove(wire)
                    except ValueError:
                        continue  # taken meanwhile
                    self._drop(wire)
        return self._trim_at if len(self._idle) > 1 else None

    def close(self) -> None:
        """Close all idle connections, and the others once their calls have ended."""
        self._closed = True
        self.close_idle()

    def hang_up(self) -> None:
        """End all connections, including those of calls in flight.

        Later questions go to wherever the server's name leads by then.
        """
        for known in list(self._known):
            wire = known()
            if wire is not None:
                wire.hang_up()
        self.close_idle()

    def forget(self) -> None:
        """In a forked child, close the copies of the sockets without a word to the server."""
        for known in self._known:
            wire = known()
            if wire is not None:
                wire.forget()
        self._idle.clear()
        self._closed = True

    def close_idle(self) -> None:
        """Close all idle connections."""
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            self._end(wire)


class _Dial:
    """One attempt to open a connection, on a thread of its own."""

    def __init__(
        self, connections: Connections, wire: Wire, timeout_seconds: float, *, beside_others: bool
    ) -> None:
        self._connections = connections
        self._beside_others = beside_others
        self._wire = wire
        self._timeout_seconds = timeout_seconds
        self._worker = Worker(self._run, "fencedlock-connect")

    def start(self) -> None:
        """Start the attempt, unless it was started before."""
        try:
            self._worker.start()
        except RuntimeError:  # the interpreter ends, or the system has no thread left
            self._run()

    def _run(self) -> None:
        try:
            if self._beside_others:
                self._connections._connector.raise_if_plain()
            self._wire.open(self._timeout_seconds)
        except BaseException as error:
            self._connections.dialled(self, self._wire, error)
        else:
            self._connections.dialled(self, self._wire, None)


def _do_nothing() -> None:
    """Do nothing. Connections call this until a callback is set."""
