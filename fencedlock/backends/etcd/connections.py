"""The calls to an etcd cluster: one channel to each endpoint, in turn; errors in the library's words; a token where users are asked for."""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.settings import Settings
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, BackendMisconfiguredError, BackendUnavailableError

_CHANNEL_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # a forked child must not find its parent's connections again
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),  # the keys of a lease are as many as the client holds
)

_BUSY: Final = re.compile("too many requests|context (deadline exceeded|canceled)|request timed out|leader changed")

LEAST_TRY_SECONDS = 0.1
"""A call that failed is not tried at another endpoint with less time than this."""

STREAM_OPENING_SECONDS = 5.0
FORK_SECONDS = 5.0
"""A fork waits so long, at the most, for calls that were ended."""

SHUTDOWN_SECONDS = 0.25
"""And so long for the end of gRPC's threads, which does not come while others in this process use gRPC."""

_GRPC_THREADS: Final = ("event_engine", "lifeguard", "grpc_", "timer_manager", "default-execut", "resolver-execu")


class Method(NamedTuple):
    """One method of one service."""

    service: str
    name: str

    @property
    def path(self) -> str:
        return f"/etcdserverpb.{self.service}/{self.name}"

    @property
    def request(self) -> Any:
        """The class of its requests."""
        return getattr(messages(), f"{self.name}Request")

    @property
    def response(self) -> Any:
        """The class of its answers."""
        return getattr(messages(), f"{self.name}Response")


RANGE = Method("KV", "Range")
PUT = Method("KV", "Put")
DELETE_RANGE = Method("KV", "DeleteRange")
TXN = Method("KV", "Txn")
COMPACT = Method("KV", "Compact")
LEASE_GRANT = Method("Lease", "LeaseGrant")
LEASE_REVOKE = Method("Lease", "LeaseRevoke")
LEASE_KEEP_ALIVE = Method("Lease", "LeaseKeepAlive")
LEASE_TIME_TO_LIVE = Method("Lease", "LeaseTimeToLive")
WATCH = Method("Watch", "Watch")
AUTHENTICATE = Method("Auth", "Authenticate")
STATUS = Method("Maintenance", "Status")
_STREAMS: Final = (LEASE_KEEP_ALIVE, WATCH)


class LeaseGoneError(BackendError):
    """The cluster knows no such lease (any more)."""


@contextmanager
def alone(mutex: Any, timeout_seconds: float, other: str) -> Iterator[None]:
    """Hold a reentrant mutex, across a call; BackendUnavailableError if ``other`` holds it for so long."""
    try:
        if not mutex.acquire(timeout=max(0.0, timeout_seconds)):
            raise BackendUnavailableError(f"etcd gave no answer in time to {other}")
        yield
    finally:
        if mutex._is_owned():  # Ctrl-C may come just before the lock is taken, or just after
            mutex.release()


class Connections:
    """The cluster as one client reaches it: one channel to each endpoint, shared by all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mutex = threading.RLock()
        self._channels: dict[int, Any] = {}
        self._calls: dict[tuple[int, Method], Any] = {}
        self._index = 0
        """The endpoint that answered last, or is to be tried next."""
        self._authenticating = threading.RLock()
        self._auth_token: str | None = None
        self._closed = False
        self._gate = Gate()
        self._streams: dict[Any, int] = {}
        """The open ones, and the endpoint of each."""
        self._forks = 0
        _open.add(self)
        with self._gate:  # a child that is forked while another thread imports waits for ever for that thread
            self._grpc = import_module("grpc")
            messages()

    # --- calls

    def call(self, method: Method, request: Any, timeout_seconds: float) -> Any:
        """The answer to one request.

        Raises BackendUnavailableError without an answer in time from any endpoint, BackendError when the cluster refuses.
        """
        return self.call_counted(method, request, timeout_seconds)[0]

    def call_counted(self, method: Method, request: Any, timeout_seconds: float, *, attempts: int = 1) -> tuple[Any, int]:
        """The answer to one request, and how often it was sent: it may be executed as often, and all our requests can be.

        Raises as :meth:`call`.
        """

        def attempt(index: int, seconds: float) -> Any:
            return self._callable(index, method)(request, timeout=seconds, metadata=self._metadata())

        return self._try_all(attempt, timeout_seconds, attempts)

    def keep_alive(self, lease_id: int, read_key: bytes, timeout_seconds: float) -> tuple[float, int]:
        """Renew a lease: the local time from which its new term counts, and how many seconds that has, 0 if the lease is gone.

        A leader that was frozen, and does not know yet that there is another one, would answer a renewal that the others never hear of.
        So a read through the majority goes first, by the same member: it shows that the member's leader was one then, and any later
        leader gives every lease a whole term from its own beginning, which is later still. The term counts from before
        the read, which is of any key that the user may read. Raises as :meth:`call`.
        """
        probe = messages().RangeRequest(key=read_key, count_only=True)
        renewal = messages().LeaseKeepAliveRequest(ID=lease_id)

        def attempt(index: int, seconds: float) -> tuple[float, int]:
            asked_at = now_seconds()
            self._callable(index, RANGE)(probe, timeout=seconds, metadata=self._metadata())
            seconds = max(LEAST_TRY_SECONDS, asked_at + seconds - now_seconds())
            stream = self._callable(index, LEASE_KEEP_ALIVE)(iter([renewal]), timeout=seconds, metadata=self._metadata())
            try:
                return asked_at, next(stream).TTL
            finally:
                stream.cancel()

        answered: tuple[float, int] = self._try_all(attempt, timeout_seconds, 1)[0]
        return answered

    @contextmanager
    def stream(self, method: Method, requests: Iterator[Any]) -> Iterator[Any]:
        """A stream without an end, to a member that has a leader. Raises as :meth:`call`, also while it is read."""
        index = self._index
        with self._gate:
            try:
                auth_token = self._authenticated(index, STREAM_OPENING_SECONDS)
                metadata = (*self._metadata(), ("hasleader", "true"))
                stream = self._callable(index, method)(requests, metadata=metadata)
                self._streams[stream] = index
                try:
                    if index != self._index:
                        raise BackendUnavailableError("another endpoint of etcd is in use by now")
                    yield stream
                finally:
                    del self._streams[stream]
                    stream.cancel()
            except self._grpc.RpcError as error:
                if self._token_expired(error):
                    self._forget_token(auth_token)
                else:
                    self._next_endpoint(index)
                raise self._error_for(error, index) from error
            except ValueError as error:
                raise BackendUnavailableError("the connection to etcd was closed") from error

    def _next_endpoint(self, failed_index: int) -> None:
        """Use another endpoint from now on, unless that has happened since; for streams too: they may wait in vain for long."""
        with self._mutex:
            if failed_index == self._index:
                self._index = (self._index + 1) % len(self._settings.endpoints)
            streams = [stream for stream, index in self._streams.items() if index == failed_index]
        for stream in streams:
            stream.cancel()

    def _try_all(self, attempt: Callable[[int, float], Any], timeout_seconds: float, attempts: int) -> tuple[Any, int]:
        """Try each endpoint once, or the only one so often, from the one in turn on; again after an expired token was renewed."""
        give_up_at = now_seconds() + timeout_seconds * attempts
        tries = max(attempts, len(self._settings.endpoints))
        sent = 0
        while True:
            index, auth_token, forks = self._index, self._auth_token, self._forks
            try:
                with self._gate:
                    seconds = max(LEAST_TRY_SECONDS, (give_up_at - now_seconds()) / tries)
                    auth_token = self._authenticated(index, seconds)
                    sent += 1
                    return attempt(index, seconds), sent
            except self._grpc.RpcError as error:
                if self._token_expired(error) and auth_token is not None:
                    self._forget_token(auth_token)
                    if now_seconds() < give_up_at:
                        continue
                if forks != self._forks and now_seconds() < give_up_at:
                    continue
                refused = not isinstance(self._error_for(error, index), BackendUnavailableError)
                tries -= 1
                if not refused:
                    self._next_endpoint(index)
                if refused or tries == 0 or give_up_at - now_seconds() < LEAST_TRY_SECONDS:
                    raise self._error_for(error, index) from error  # never kept in a variable: it would keep this frame alive
            except ValueError as error:  # gRPC's word for a channel that was closed meanwhile
                if forks == self._forks:
                    raise BackendUnavailableError("the connection to etcd was closed") from error

    # --- authentication

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._auth_token is None else (("token", self._auth_token),)

    def _authenticated(self, index: int, timeout_seconds: float) -> str | None:
        """The token of the user, got first if there is none; None without a user."""
        if self._settings.user is None or self._auth_token is not None:
            return self._auth_token
        give_up_at = now_seconds() + timeout_seconds
        with alone(self._authenticating, timeout_seconds, "another thread that logs in"):
            if self._auth_token is None:  # else another thread has done so
                request = messages().AuthenticateRequest(name=self._settings.user, password=self._settings.password)
                seconds = max(LEAST_TRY_SECONDS, give_up_at - now_seconds())
                self._auth_token = self._callable(index, AUTHENTICATE)(request, timeout=seconds).token
            return self._auth_token

    def _forget_token(self, expired: str | None) -> None:
        with self._mutex:
            if self._auth_token == expired:
                self._auth_token = None

    @staticmethod
    def _token_expired(error: Any) -> bool:
        return any(words in (error.details() or "") for words in ("invalid auth token", "revision of auth store is old"))

    # --- errors

    def _error_for(self, error: Any, index: int) -> BackendError:
        """The error in the library's words."""
        codes, code, details = self._grpc.StatusCode, error.code(), error.details() or ""
        endpoint = self._settings.endpoints[index]
        if code in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.CANCELLED, codes.ABORTED) or _BUSY.search(details):
            return BackendUnavailableError(f"etcd at {endpoint} gave no answer in time: {details or code.name}")
        if "requested lease not found" in details:
            return LeaseGoneError(f"etcd at {endpoint} says: {details}")
        if "user name is empty" in details:
            return BackendMisconfiguredError(f"etcd at {endpoint} asks for a user: name one in the URL, as etcd://user:password@host:2379")
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED) or "authentication" in details:
            return BackendMisconfiguredError(f"etcd at {endpoint} refuses: {details}")
        return BackendError(f"etcd at {endpoint} says: {details or code.name}")

    # --- channels

    def _callable(self, index: int, method: Method) -> Any:
        found = self._calls.get((index, method))
        if found is None:
            with self._mutex:
                make = getattr(self._channel(index), "stream_stream" if method in _STREAMS else "unary_unary")
                found = self._calls[index, method] = make(
                    method.path,
                    request_serializer=method.request.SerializeToString,
                    response_deserializer=method.response.FromString,
                )
        return found

    def _channel(self, index: int) -> Any:
        self._raise_if_closed()
        if index not in self._channels:
            endpoint, settings = self._settings.endpoints[index], self._settings
            if settings.tls:
                files = [None if path is None else Path(path).read_bytes() for path in (settings.ca, settings.key, settings.cert)]
                credentials = self._grpc.ssl_channel_credentials(*files)
                self._channels[index] = self._grpc.secure_channel(endpoint, credentials, _CHANNEL_OPTIONS)
            else:
                self._channels[index] = self._grpc.insecure_channel(endpoint, _CHANNEL_OPTIONS)
        return self._channels[index]

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise BackendUnavailableError("the connection to etcd is closed")

    def close(self) -> None:
        """End all calls and streams."""
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> bool:
        """Close the channels; True if there were any."""
        with self._mutex:
            channels, self._channels, self._calls = self._channels, {}, {}
        for channel in channels.values():
            channel.close()
        return bool(channels)

    # --- forks: gRPC survives them only while it does nothing

    def before_fork(self) -> bool:
        """Let no call begin, and end those under way: they are made again after the fork. True if there was anything to close."""
        self._gate.close()
        self._forks += 1
        had_channels = self._hang_up()
        self._gate.wait_until_empty(FORK_SECONDS)
        return self._hang_up() or had_channels  # who was just inside may have opened a channel

    def after_fork_in_parent(self) -> None:
        """Let calls begin again."""
        self._gate.open()

    def forget(self) -> None:
        """In a forked child: begin anew."""
        self._channels, self._calls, self._streams = {}, {}, {}
        self._mutex = threading.RLock()
        self._authenticating = threading.RLock()
        self._gate = Gate()


class Gate:
    """Counts who is inside, and can be closed to those who come."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._inside = 0
        self._closings = 0
        """How many threads keep it closed: more than one may fork."""
        self._mine = threading.local()

    def __enter__(self) -> None:
        with self._mutex:  # as "with self._changed", without a function in Python between
            depth = getattr(self._mine, "depth", 0)
            if self._closings and depth:
                raise BackendUnavailableError("the process is being forked")  # who closed the gate waits for this thread
            while self._closings:
                self._changed.wait()
            self._mine.depth = depth + 1
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._mine.depth -= 1
            self._inside -= 1
            if self._closings:
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closings += 1

    def open(self) -> None:
        with self._changed:
            self._closings -= 1
            self._changed.notify_all()

    def wait_until_empty(self, timeout_seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0, timeout_seconds)


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


def _before_fork() -> None:
    were_open = [connections.before_fork() for connections in list(_open)]
    if any(were_open):
        give_up_at = now_seconds() + SHUTDOWN_SECONDS
        while _grpc_is_alive() and now_seconds() < give_up_at:
            time.sleep(0.001)


def _grpc_is_alive() -> bool:
    """True while gRPC has threads: without channels it ends them a moment later, and a fork before that leaves the child half of it."""
    try:
        return any(task.joinpath("comm").read_text().startswith(_GRPC_THREADS) for task in Path("/proc/self/task").iterdir())
    except OSError:  # no Linux, or a thread that has just ended: look again
        return True


def _after_fork_in_parent() -> None:
    for connections in list(_open):
        connections.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
