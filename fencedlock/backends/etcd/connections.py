"""Calls to an etcd cluster.

Calls go to one endpoint at a time, through one channel for each, and to the next endpoint after a
failure. gRPC's errors are raised as errors of this library. If the cluster asks for a user, calls
carry the token of a login.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from fencedlock.backends.etcd.grpc_repairs import load_grpc, make_interruptible
from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.settings import Settings
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendError, BackendMisconfiguredError, BackendUnavailableError
from fencedlock.runtime.cooperation import raise_if_patched_too_late
from fencedlock.runtime.interrupts import Event, make_mutex, raised_by_handler
from fencedlock.runtime.process import CopiedProcessError, in_child, own

_CHANNEL_OPTIONS: Final = (
    # A forked child must not reuse the connections of its parent.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # An HTTP proxy that the environment names is meant for web pages and does not lead to etcd.
    ("grpc.enable_http_proxy", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # The answer that lists the keys of a lease grows with the number of the client's holds.
    ("grpc.max_receive_message_length", -1),
)

_BUSY: Final = re.compile(
    "too many requests|context (deadline exceeded|canceled)|request timed out|leader changed"
)

LEAST_TRY_SECONDS = 0.1
"""The shortest timeout of one try. With less time left, a failed call is not tried again."""

RESTED_SECONDS = 1.0
"""The idle time after which a NAT or a load balancer may have silently dropped a connection."""

LEASH_SECONDS = 0.5
"""The longest time that the first call on such an idle connection waits for its answer. After that,
the call is made again through a new connection.
"""

RENEWAL_SECONDS = 0.5
"""The least age in seconds at which a channel is replaced by a new one."""

RETIREMENT_SECONDS = 10.0
"""How long a replaced channel stays open, because calls of other threads may be under way on it."""

MOST_RETIRED = 8

STREAM_OPENING_SECONDS = 5.0
FORK_SECONDS = 5.0
"""The longest time that a fork waits until the calls that it ended have returned."""

SHUTDOWN_SECONDS = 0.25
"""The longest time that a fork waits until gRPC's threads have ended. They do not end while other
code in this process uses gRPC.
"""

GRPC_THREADS: Final = (
    "event_engine",
    "lifeguard",
    "grpc_",
    "timer_manager",
    "default-execut",
    "resolver-execu",
)
"""The prefixes of the names of gRPC's own threads."""


class Method(NamedTuple):
    """One method of one of etcd's gRPC services."""

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
        """The class of its responses."""
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


class LeaseGoneError(BackendError):
    """The cluster does not know this lease, or has forgotten it."""


_Result = TypeVar("_Result")


def alone(mutex: Any, timeout_seconds: float, other: str, action: Callable[[], _Result]) -> _Result:
    """Run an action, which may make a call, while holding a reentrant mutex; return its result.

    Raises BackendUnavailableError if another thread, whose work ``other`` names, keeps the mutex
    until the timeout.

    This is not a context manager, because an interrupt at the entry of ``__exit__`` would leave the
    mutex taken.
    """
    try:
        if not mutex.acquire(timeout=max(0.0, timeout_seconds)):
            raise BackendUnavailableError(f"etcd gave no answer in time to {other}")
        return action()
    finally:
        if mutex._is_owned():  # an interrupt may come just before the mutex is taken, or just after
            mutex.release()


class Connections:
    """The channels of one client: one to each endpoint in use, shared by all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mutex = make_mutex()
        self._channels: dict[int, Any] = {}
        self._calls: dict[tuple[int, Method], Any] = {}
        self._retired: list[tuple[float, Any]] = []
        """Channels that were replaced, each with the local time of its replacement."""
        self._opened_at: dict[int, float] = {}
        self._used_at: dict[int, float] = {}
        """Maps each endpoint to the local time at which its last answered call began."""
        self._index = 0
        """The endpoint that answered last, or that is tried next."""
        self._authenticating = make_mutex()
        self._auth_token: str | None = None
        self._closed = False
        self._gate = Gate()
        self._streams: dict[Any, int] = {}
        """Maps each open stream to its endpoint."""
        self._forks = 0
        _open.add(self)
        raise_if_patched_too_late()
        visit, inside = object(), self._gate.inside
        try:
            # If a child is forked while another thread of its parent imports a module, the child
            # waits for that thread forever. Inside the gate, the import keeps forks waiting.
            self._gate.admit(visit)
            self._grpc = load_grpc()
            messages()
        finally:
            inside.pop(visit, None)

    # --- calls

    def call(self, method: Method, request: Any, timeout_seconds: float) -> Any:
        """Return the answer to one request.

        Raises BackendUnavailableError if no endpoint answers in time, and BackendError if the
        cluster refuses.
        """
        return self.call_counted(method, request, timeout_seconds)[0]

    def call_counted(
        self, method: Method, request: Any, timeout_seconds: float, *, attempts: int = 1
    ) -> tuple[Any, int]:
        """Return the answer to one request, and how many times the request was sent.

        The cluster may have executed it that many times. All requests of this library are made so
        that this does no harm. Raises the same errors as :meth:`call`.
        """

        def attempt(index: int, seconds: float) -> Any:
            return self._answer(index, method, request, seconds)

        return self._try_all(attempt, timeout_seconds, attempts)

    def keep_alive(
        self, lease_id: int, read_key: bytes, timeout_seconds: float
    ) -> tuple[float, int]:
        """Renew a lease, and return the local time at which its new term begins and its seconds.

        The number of seconds is 0 if the lease is gone.

        A leader that was frozen, and does not know yet that it was replaced, would answer a renewal
        of which the other members never hear. Therefore a read that needs the majority is sent
        first, to the same member. Its answer shows that the member's leader was still the leader
        then. Any later leader gives every lease a whole term from the time at which it became
        leader, which is later still. The term is counted from the time before the read.
        ``read_key`` may be any key that the user has permission to read. Raises the same errors as
        :meth:`call`.
        """
        probe = messages().RangeRequest(key=read_key, count_only=True)
        renewal = messages().LeaseKeepAliveRequest(ID=lease_id)

        def attempt(index: int, seconds: float) -> tuple[float, int]:
            asked_at = now_seconds()
            self._answer(index, RANGE, probe, seconds)
            seconds = max(LEAST_TRY_SECONDS, asked_at + seconds - now_seconds())
            # The method takes a stream. A stream of one request has one answer, so the method is
            # called like any other. This avoids the threads that gRPC starts for streams, which an
            # interrupt could leave half started.
            return asked_at, self._answer(index, LEASE_KEEP_ALIVE, renewal, seconds).TTL

        answered: tuple[float, int] = self._try_all(attempt, timeout_seconds, 1)[0]
        return answered

    @contextmanager
    def stream(self, method: Method, requests: Iterator[Any]) -> Iterator[Any]:
        """Open an endless stream to a member that has a leader, and yield its responses.

        The calling thread is there for this stream alone. Raises the same errors as :meth:`call`,
        also while the responses are read.
        """
        index = self._index
        visit, inside = object(), self._gate.inside
        try:
            self._gate.admit(visit)
            auth_token = self._authenticated(index, STREAM_OPENING_SECONDS)
            metadata = (*self._metadata(), ("hasleader", "true"))
            stream = self._callable(index, method)(
                (request.SerializeToString() for request in requests), metadata=metadata
            )
            self._streams[stream] = index
            try:
                if index != self._index:
                    raise BackendUnavailableError("another endpoint of etcd is in use by now")
                yield _Responses(stream, method)
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
        finally:
            inside.pop(visit, None)

    def _next_endpoint(self, failed_index: int) -> None:
        """Use the next endpoint from now on, unless another thread has already changed it.

        Also end the streams of the failed endpoint, because they might wait in vain for a long
        time.
        """
        self._renew_channel(failed_index)
        with self._mutex:
            if failed_index == self._index:
                self._index = (self._index + 1) % len(self._settings.endpoints)
            streams = [stream for stream, index in self._streams.items() if index == failed_index]
        for stream in streams:
            stream.cancel()

    def _try_all(
        self, attempt: Callable[[int, float], Any], timeout_seconds: float, attempts: int
    ) -> tuple[Any, int]:
        """Return the result of the first try that succeeds, and how many requests were sent.

        Starts with the endpoint in use and goes on to the next one after each failure. Makes as
        many tries as there are endpoints, or ``attempts`` if that is more. A try does not count if
        it failed because of an expired token, a fork or an idle connection. An exception of a
        signal handler leaves this method unchanged.
        """
        began_at = now_seconds()
        give_up_at = began_at + timeout_seconds * attempts
        tries = max(attempts, len(self._settings.endpoints))
        sent = 0
        inside = self._gate.inside
        while True:
            index, auth_token, forks = self._index, self._auth_token, self._forks
            visit = object()
            leashed = False
            try:
                if not own[0]:
                    raise CopiedProcessError  # the channels belong to the original process
                self._gate.admit(visit)
                now = now_seconds()
                seconds = max(LEAST_TRY_SECONDS, (give_up_at - now) / tries)
                if seconds > LEASH_SECONDS and now - self._used_at.get(index, now) > RESTED_SECONDS:
                    seconds, leashed = LEASH_SECONDS, True
                auth_token = self._authenticated(index, seconds)
                sent += 1
                answer = attempt(index, seconds)
                self._used_at[index] = now
                return answer, sent
            except self._grpc.RpcError as error:
                if leashed and error.code() is self._grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._renew_channel(index)
                    self._used_at.pop(index, None)
                elif not self._has_changed(error, auth_token, forks) or now_seconds() >= give_up_at:
                    tries -= 1
                    self._raise_if_last(error, index, give_up_at if tries else 0.0, began_at, sent)
            except ValueError as error:  # gRPC raises it if the channel was closed meanwhile
                if raised_by_handler(error) is not None:
                    raise
                if forks == self._forks:
                    raise BackendUnavailableError("the connection to etcd was closed") from error
            finally:
                inside.pop(visit, None)

    def _has_changed(self, error: Any, auth_token: str | None, forks: int) -> bool:
        """Return True if an expired token or a fork made the call fail.

        Such a call deserves another try that counts as the first.
        """
        if auth_token is not None and self._token_expired(error):
            self._forget_token(auth_token)
            return True
        return forks != self._forks

    def _raise_if_last(
        self, error: Any, index: int, give_up_at: float, began_at: float, sent: int
    ) -> None:
        """Switch to the next endpoint after this error, or raise it if that is no use.

        The error is raised, as an error of this library, if the cluster refused the request or if
        no time is left.
        """
        ours = self._error_for(error, index)
        try:
            if isinstance(ours, BackendUnavailableError):
                self._next_endpoint(index)
                if give_up_at - now_seconds() >= LEAST_TRY_SECONDS:
                    return
                ours.sent, ours.asked_at = sent > 0, began_at
            raise ours from error
        finally:
            # An error refers to the frames that it has passed. A variable of such a frame that
            # refers to the error closes a cycle, which would keep all these frames alive.
            del ours, error

    # --- authentication

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._auth_token is None else (("token", self._auth_token),)

    def _authenticated(self, index: int, timeout_seconds: float) -> str | None:
        """Return the token of the user, after a login if there is none yet. None without a user."""
        if self._settings.user is None or self._auth_token is not None:
            return self._auth_token
        give_up_at = now_seconds() + timeout_seconds

        def log_in() -> str | None:
            if self._auth_token is None:  # otherwise another thread has logged in meanwhile
                request = messages().AuthenticateRequest(
                    name=self._settings.user, password=self._settings.password
                )
                seconds = max(LEAST_TRY_SECONDS, give_up_at - now_seconds())
                self._auth_token = self._answer(
                    index, AUTHENTICATE, request, seconds, metadata=()
                ).token
            return self._auth_token

        return alone(self._authenticating, timeout_seconds, "another thread that logs in", log_in)

    def _forget_token(self, expired: str | None) -> None:
        with self._mutex:
            if self._auth_token == expired:
                self._auth_token = None

    @staticmethod
    def _token_expired(error: Any) -> bool:
        return any(
            words in (error.details() or "")
            for words in ("invalid auth token", "revision of auth store is old")
        )

    # --- errors

    def _error_for(self, error: Any, index: int) -> BackendError:
        """Return the error of this library that an error of gRPC stands for."""
        codes, code, details = self._grpc.StatusCode, error.code(), error.details() or ""
        endpoint = self._settings.endpoints[index]
        if code in (
            codes.UNAVAILABLE,
            codes.DEADLINE_EXCEEDED,
            codes.CANCELLED,
            codes.ABORTED,
        ) or _BUSY.search(details):
            return BackendUnavailableError(
                f"etcd at {endpoint} gave no answer in time: {details or code.name}"
            )
        if "requested lease not found" in details:
            return LeaseGoneError(f"etcd at {endpoint} says: {details}")
        if "user name is empty" in details:
            return BackendMisconfiguredError(
                f"etcd at {endpoint} asks for a user: name one in the URL, as "
                "etcd://user:password@host:2379"
            )
        if code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED) or "authentication" in details:
            return BackendMisconfiguredError(f"etcd at {endpoint} refuses: {details}")
        return BackendError(f"etcd at {endpoint} says: {details or code.name}")

    # --- channels

    def _answer(
        self,
        index: int,
        method: Method,
        request: Any,
        timeout_seconds: float,
        metadata: tuple[tuple[str, str], ...] | None = None,
    ) -> Any:
        """Return the answer of one endpoint to one request. Raises gRPC's errors.

        Messages are serialized and parsed here and not by gRPC, because gRPC would mistake an
        exception that a signal handler raises meanwhile for a broken message.
        """
        call = self._callable(index, method)
        reply = call(
            request.SerializeToString(),
            timeout=timeout_seconds,
            metadata=self._metadata() if metadata is None else metadata,
        )
        return method.response.FromString(reply)

    def _callable(self, index: int, method: Method) -> Any:
        found = self._calls.get((index, method))
        if found is None:
            with self._mutex:
                make = getattr(
                    self._channel(index), "stream_stream" if method is WATCH else "unary_unary"
                )
                found = self._calls[index, method] = make(method.path)
        return found

    def _channel(self, index: int) -> Any:
        self._raise_if_closed()
        if index not in self._channels:
            core.use()
            endpoint, settings = self._settings.endpoints[index], self._settings
            # The files are read again for each channel, because certificates are renewed on disk.
            if settings.tls:
                files = [
                    None if path is None else Path(path).read_bytes()
                    for path in (settings.ca, settings.key, settings.cert)
                ]
                credentials = self._grpc.ssl_channel_credentials(*files)
                channel = self._grpc.secure_channel(endpoint, credentials, _CHANNEL_OPTIONS)
            else:
                channel = self._grpc.insecure_channel(endpoint, _CHANNEL_OPTIONS)
            make_interruptible(channel)
            self._channels[index] = channel
            self._opened_at[index] = now_seconds()
        return self._channels[index]

    def _renew_channel(self, index: int) -> None:
        """Use a new channel to this endpoint from now on, unless the present one is still young.

        The new channel resolves the host name, reads the certificates and connects again.
        """
        with self._mutex:
            now = now_seconds()
            if (
                index not in self._channels
                or now - self._opened_at.get(index, now) < RENEWAL_SECONDS
            ):
                return
            self._retired.append((now, self._channels.pop(index)))
            self._calls = {key: call for key, call in self._calls.items() if key[0] != index}
            self._used_at.pop(index, None)
            streams = [
                stream for stream, of_index in list(self._streams.items()) if of_index == index
            ]
            too_many = [channel for _, channel in self._retired[:-MOST_RETIRED]]
            del self._retired[:-MOST_RETIRED]
        for stream in streams:
            stream.cancel()
        for channel in too_many:
            channel.close()

    def maintain(self, now: float) -> float | None:
        """Close the channels that were replaced a while ago.

        Return the local time of the next call, or None if no replaced channels are left.
        """
        with self._mutex:
            old = [channel for since, channel in self._retired if now >= since + RETIREMENT_SECONDS]
            del self._retired[: len(old)]
            next_at = self._retired[0][0] + RETIREMENT_SECONDS if self._retired else None
        for channel in old:
            channel.close()
        return next_at

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise BackendUnavailableError("the connection to etcd is closed")

    def close(self) -> None:
        """End all calls and streams."""
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> bool:
        """Close all channels. Return True if there were any."""
        with self._mutex:
            channels = [*self._channels.values(), *(channel for _, channel in self._retired)]
            self._channels, self._calls, self._retired = {}, {}, []
        for channel in channels:
            channel.close()
        return bool(channels)

    # --- forks: gRPC survives a fork only while it does nothing

    def before_fork(self) -> bool:
        """Let no call begin, and end those under way. They are made again after the fork.

        Return True if there were channels to close.
        """
        self._gate.close()
        self._forks += 1
        had_channels = self._hang_up()
        self._gate.wait_until_empty(FORK_SECONDS)
        # A call that was still inside the gate may have opened a channel.
        return self._hang_up() or had_channels

    def after_fork_in_parent(self) -> None:
        """Let calls begin again."""
        self._gate.open()

    def forget(self) -> None:
        """In a forked child, drop the channels of the parent and start without any."""
        core.kept += [*self._channels.values(), *(channel for _, channel in self._retired)]
        self._channels, self._calls, self._streams, self._retired = {}, {}, {}, []
        self._mutex = make_mutex()
        self._authenticating = make_mutex()
        self._gate = Gate()


class _Responses:
    """An iterator over the responses of a stream."""

    def __init__(self, stream: Any, method: Method) -> None:
        self._stream = stream
        self._method = method

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._method.response.FromString(next(self._stream))

    def cancel(self) -> None:
        """End the stream."""
        self._stream.cancel()


class Gate:
    """Records the calls that are under way, and can be closed to new ones, so that a fork can wait.

    Each visit is an entry of a dictionary. A visitor removes its entry in one step of the
    interpreter, so no interrupt can leave an entry behind.
    """

    def __init__(self) -> None:
        self.inside: dict[object, int] = {}
        """Maps each visit to the ident of its thread."""
        self._mutex = make_mutex()
        self._closings = 0
        """The number of threads that keep the gate closed. More than one may fork at a time."""
        self._opened = Event()
        self._opened.set()

    def admit(self, visit: object) -> None:
        """Enter as soon as the gate is open.

        The caller removes the visit from :attr:`inside` when it leaves. Raises
        BackendUnavailableError if the gate is closed and this thread has another visit inside.
        """
        me = threading.get_ident()
        while True:
            self.inside[visit] = me
            if not self._closings:
                return
            self.inside.pop(visit, None)
            if me in self.inside.values():
                # The thread that closed the gate waits until this thread has left.
                raise BackendUnavailableError("the process is being forked")
            self._opened.wait()

    @property
    def closed(self) -> bool:
        """True during a fork that Python knows of (not one that C code makes by itself)."""
        return self._closings > 0

    def close(self) -> None:
        with self._mutex:
            self._closings += 1
            self._opened.clear()

    def open(self) -> None:
        with self._mutex:
            self._closings -= 1
            if not self._closings:
                self._opened.set()

    def wait_until_empty(self, timeout_seconds: float) -> None:
        """Wait until no other thread is inside, or until the timeout."""
        give_up_at, me = now_seconds() + timeout_seconds, threading.get_ident()
        while (
            any(ident != me for ident in list(self.inside.values())) and now_seconds() < give_up_at
        ):
            time.sleep(0.001)


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


class Core:
    """What this process knows of gRPC's own state, which outlives the channels for a while.

    This state is gRPC's threads and the data that they share.
    """

    def __init__(self) -> None:
        self.is_used: bool = False
        """True after a channel was made in this process."""
        self.forking: set[int] = set()
        """The idents of the threads that are in a fork that Python makes. Before such a fork,
        everything that gRPC does is ended.
        """
        self.is_broken: bool = False
        """True in a process that was forked in C after gRPC was used."""
        self.kept: list[Any] = []
        """Channels that the original process had open. They are kept because gRPC, to close them,
        would wait for threads that do not exist in this process.
        """

    def use(self) -> None:
        """Record that a channel is about to be used.

        Raises BackendMisconfiguredError if gRPC does not work in this process.
        """
        if self.is_broken:
            raise BackendMisconfiguredError(
                "this process was forked in C, without Python's fork hooks, from one that had used "
                "gRPC, which does not work in such a copy. Use the client first in the forked "
                "process (with uWSGI: lazy-apps = true), or fork before anything connects to etcd"
            )
        self.is_used = True

    def become_child(self) -> None:
        """In a forked child, find out if gRPC works here."""
        if threading.get_ident() in self.forking:
            self.is_used = False
        elif self.is_used:
            self.is_broken = True
        self.forking.clear()


core: Core = Core()
in_child("transports", core.become_child)


def _before_fork() -> None:
    core.forking.add(threading.get_ident())
    were_open = [connections.before_fork() for connections in list(_open)]
    if any(were_open):
        give_up_at = now_seconds() + SHUTDOWN_SECONDS
        while _grpc_is_alive() and now_seconds() < give_up_at:
            time.sleep(0.001)


def _grpc_is_alive() -> bool:
    """Return True while gRPC has threads, or if the threads can't be listed.

    Without channels, gRPC ends its threads a moment later. A fork before that leaves the child with
    half of gRPC.
    """
    try:
        return any(
            task.joinpath("comm").read_text().startswith(GRPC_THREADS)
            for task in Path("/proc/self/task").iterdir()
        )
    except OSError:  # this is not Linux, or a thread has just ended: look again
        return True


def _after_fork_in_parent() -> None:
    core.forking.discard(threading.get_ident())
    for connections in list(_open):
        connections.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
