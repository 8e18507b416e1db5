"""The calls to an etcd cluster: one channel to each endpoint, in turn; errors in the library's words; a token where users are asked for."""

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
from fencedlock.runtime.interrupts import raised_by_handler
from fencedlock.runtime.process import CopiedProcessError, in_child, own
from fencedlock.runtime.threads import Event, make_mutex

_CHANNEL_OPTIONS: Final = (
    # A forked child must not find its parent's connections again.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # A proxy that the environment names for web pages leads to no etcd.
    ("grpc.enable_http_proxy", 0),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.max_receive_message_length", -1),  # the keys of a lease are as many as the client holds
)

_BUSY: Final = re.compile(
    "too many requests|context (deadline exceeded|canceled)|request timed out|leader changed"
)

LEAST_TRY_SECONDS = 0.1
"""A call that failed is not tried at another endpoint with less time than this."""

RESTED_SECONDS = 1.0
"""A connection that was idle for so long may have been forgotten on the way, by a NAT or a load
balancer, without a word to us.
"""

LEASH_SECONDS = 0.5
"""So the first call on it waits for its answer no longer than that, and is then made again through
a new connection.
"""

RENEWAL_SECONDS = 0.5
"""A channel is replaced by a new one at most so often."""

RETIREMENT_SECONDS = 10.0
"""A channel that was replaced is closed so much later: calls of other threads may be under way on
it.
"""

MOST_RETIRED = 8

STREAM_OPENING_SECONDS = 5.0
FORK_SECONDS = 5.0
"""A fork waits so long, at the most, for calls that were ended."""

SHUTDOWN_SECONDS = 0.25
"""And so long for the end of gRPC's threads, which does not come while others in this process use
gRPC.
"""

GRPC_THREADS: Final = (
    "event_engine",
    "lifeguard",
    "grpc_",
    "timer_manager",
    "default-execut",
    "resolver-execu",
)
"""What the names of gRPC's own threads begin with."""


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


class LeaseGoneError(BackendError):
    """The cluster knows no such lease (any more)."""


_Result = TypeVar("_Result")


def alone(mutex: Any, timeout_seconds: float, other: str, action: Callable[[], _Result]) -> _Result:
    """Do something, which may be a call, under a reentrant mutex; BackendUnavailableError if ``other`` holds it for so long.

    It is no context manager: interrupted at the entry of its ``__exit__``, that would keep the
    mutex.
    """
    try:
        if not mutex.acquire(timeout=max(0.0, timeout_seconds)):
            raise BackendUnavailableError(f"etcd gave no answer in time to {other}")
        return action()
    finally:
        if mutex._is_owned():  # an interrupt may come just before the lock is taken, or just after
            mutex.release()


class Connections:
    """The cluster as one client reaches it: one channel to each endpoint, shared by all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mutex = make_mutex()
        self._channels: dict[int, Any] = {}
        self._calls: dict[tuple[int, Method], Any] = {}
        self._retired: list[tuple[float, Any]] = []
        """Channels that were replaced, and the local time of that."""
        self._opened_at: dict[int, float] = {}
        self._used_at: dict[int, float] = {}
        """By endpoint: when the last call that was answered began."""
        self._index = 0
        """The endpoint that answered last, or is to be tried next."""
        self._authenticating = make_mutex()
        self._auth_token: str | None = None
        self._closed = False
        self._gate = Gate()
        self._streams: dict[Any, int] = {}
        """The open ones, and the endpoint of each."""
        self._forks = 0
        _open.add(self)
        raise_if_patched_too_late()
        visit, inside = object(), self._gate.inside
        try:
            # A child that is forked while another thread imports waits for ever for that thread.
            self._gate.admit(visit)
            self._grpc = load_grpc()
            messages()
        finally:
            inside.pop(visit, None)

    # --- calls

    def call(self, method: Method, request: Any, timeout_seconds: float) -> Any:
        """The answer to one request.

        Raises BackendUnavailableError without an answer in time from any endpoint, BackendError
        when the cluster refuses.
        """
        return self.call_counted(method, request, timeout_seconds)[0]

    def call_counted(
        self, method: Method, request: Any, timeout_seconds: float, *, attempts: int = 1
    ) -> tuple[Any, int]:
        """The answer to one request, and how often it was sent: it may be executed as often, and all our requests can be.

        Raises as :meth:`call`.
        """

        def attempt(index: int, seconds: float) -> Any:
            return self._answer(index, method, request, seconds)

        return self._try_all(attempt, timeout_seconds, attempts)

    def keep_alive(
        self, lease_id: int, read_key: bytes, timeout_seconds: float
    ) -> tuple[float, int]:
        """Renew a lease: the local time from which its new term counts, and how many seconds that has, 0 if the lease is gone.

        A leader that was frozen, and does not know yet that there is another one, would answer a
        renewal that the others never hear of. So a read through the majority goes first, by the
        same member: it shows that the member's leader was one then, and any later leader gives
        every lease a whole term from its own beginning, which is later still. The term counts from
        before the read, which is of any key that the user may read. Raises as :meth:`call`.
        """
        probe = messages().RangeRequest(key=read_key, count_only=True)
        renewal = messages().LeaseKeepAliveRequest(ID=lease_id)

        def attempt(index: int, seconds: float) -> tuple[float, int]:
            asked_at = now_seconds()
            self._answer(index, RANGE, probe, seconds)
            seconds = max(LEAST_TRY_SECONDS, asked_at + seconds - now_seconds())
            # The method takes a stream. A stream of one request has one answer: so it is called
            # like any other, without the threads by which gRPC serves streams, and which an
            # interrupt could leave half started.
            return asked_at, self._answer(index, LEASE_KEEP_ALIVE, renewal, seconds).TTL

        answered: tuple[float, int] = self._try_all(attempt, timeout_seconds, 1)[0]
        return answered

    @contextmanager
    def stream(self, method: Method, requests: Iterator[Any]) -> Iterator[Any]:
        """A stream without an end, to a member that has a leader, in a thread of its own.

        Raises as :meth:`call`, also while it is read.
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
        """Use another endpoint from now on, unless that has happened since; for streams too: they may wait in vain for long."""
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
        """Try each endpoint once, or the only one so often, from the one in turn on; again after an expired token was renewed.

        What a signal handler raises comes out as it is.
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
                    raise CopiedProcessError  # the channels are the original's
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
            except ValueError as error:  # gRPC's word for a channel that was closed meanwhile
                if raised_by_handler(error) is not None:
                    raise
                if forks == self._forks:
                    raise BackendUnavailableError("the connection to etcd was closed") from error
            finally:
                inside.pop(visit, None)

    def _has_changed(self, error: Any, auth_token: str | None, forks: int) -> bool:
        """True if the call failed because its token had expired, or by a fork, so that it is worth another try like the first."""
        if auth_token is not None and self._token_expired(error):
            self._forget_token(auth_token)
            return True
        return forks != self._forks

    def _raise_if_last(
        self, error: Any, index: int, give_up_at: float, began_at: float, sent: int
    ) -> None:
        """Turn to the next endpoint after this error; or raise it, in the library's words, if no time is left or the cluster refused."""
        ours = self._error_for(error, index)
        try:
            if isinstance(ours, BackendUnavailableError):
                self._next_endpoint(index)
                if give_up_at - now_seconds() >= LEAST_TRY_SECONDS:
                    return
                ours.sent, ours.asked_at = sent > 0, began_at
            raise ours from error
        finally:
            # An error in a variable of a frame that it has passed keeps all frames alive.
            del ours, error

    # --- authentication

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._auth_token is None else (("token", self._auth_token),)

    def _authenticated(self, index: int, timeout_seconds: float) -> str | None:
        """The token of the user, got first if there is none; None without a user."""
        if self._settings.user is None or self._auth_token is not None:
            return self._auth_token
        give_up_at = now_seconds() + timeout_seconds

        def log_in() -> str | None:
            if self._auth_token is None:  # else another thread has done so
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
        """The error in the library's words."""
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
        """The answer to one request of one endpoint. Raises gRPC's errors.

        Messages are put into bytes and read here: gRPC would take what a signal handler raises in
        the middle of that for a broken message.
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
            # The files are read anew for each channel: certificates are renewed on disk.
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
        """Use another channel to this endpoint from now on: one that looks its name up, reads the certificates and connects anew."""
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
        """Close the channels that were replaced a while ago; when to call again, None if there are none."""
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
        """Close the channels; True if there were any."""
        with self._mutex:
            channels = [*self._channels.values(), *(channel for _, channel in self._retired)]
            self._channels, self._calls, self._retired = {}, {}, []
        for channel in channels:
            channel.close()
        return bool(channels)

    # --- forks: gRPC survives them only while it does nothing

    def before_fork(self) -> bool:
        """Let no call begin, and end those under way: they are made again after the fork.

        True if there was anything to close.
        """
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
        core.kept += [*self._channels.values(), *(channel for _, channel in self._retired)]
        self._channels, self._calls, self._streams, self._retired = {}, {}, {}, []
        self._mutex = make_mutex()
        self._authenticating = make_mutex()
        self._gate = Gate()


class _Responses:
    """The messages of a stream."""

    def __init__(self, stream: Any, method: Method) -> None:
        self._stream = stream
        self._method = method

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._method.response.FromString(next(self._stream))

    def cancel(self) -> None:
        """End it."""
        self._stream.cancel()


class Gate:
    """Knows who is inside, and can be closed to those who come.

    Who is inside stands in a dictionary and takes itself out by one step of the interpreter, so
    that no interrupt leaves anybody in there.
    """

    def __init__(self) -> None:
        self.inside: dict[object, int] = {}
        """The visits, with the ident of each one's thread."""
        self._mutex = make_mutex()
        self._closings = 0
        """How many threads keep it closed: more than one may fork."""
        self._opened = Event()
        self._opened.set()

    def admit(self, visit: object) -> None:
        """Go inside, once it is open.

        The visitor takes the visit out of :attr:`inside` when it goes.
        """
        me = threading.get_ident()
        while True:
            self.inside[visit] = me
            if not self._closings:
                return
            self.inside.pop(visit, None)
            if me in self.inside.values():
                # Who closed the gate waits for this thread.
                raise BackendUnavailableError("the process is being forked")
            self._opened.wait()

    @property
    def closed(self) -> bool:
        """True while a fork is under way that Python knows of."""
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
        """Wait until nobody else is inside, at most so long."""
        give_up_at, me = now_seconds() + timeout_seconds, threading.get_ident()
        while (
            any(ident != me for ident in list(self.inside.values())) and now_seconds() < give_up_at
        ):
            time.sleep(0.001)


_open: weakref.WeakSet[Connections] = weakref.WeakSet()


class Core:
    """gRPC's own state in this process: its threads and what they share, which live on for a while when all channels are closed."""

    def __init__(self) -> None:
        self.is_used: bool = False
        """True once a channel was made in this process."""
        self.forking: set[int] = set()
        """The idents of the threads that are in Python's own fork, before which all that gRPC does
        is ended.
        """
        self.is_broken: bool = False
        """True in a process that was forked in C after gRPC was used."""
        self.kept: list[Any] = []
        """Channels that an original had open: to close them, gRPC would wait for threads that are
        not here.
        """

    def use(self) -> None:
        """A channel is about to be made.

        Raises BackendMisconfiguredError where it would not work.
        """
        if self.is_broken:
            raise BackendMisconfiguredError(
                "this process was forked in C, without Python's fork hooks, from one that had used "
                "gRPC, which does not work in such a copy. Use the client first in the forked "
                "process (with uWSGI: lazy-apps = true), or fork before anything connects to etcd"
            )
        self.is_used = True

    def become_child(self) -> None:
        """In a forked child."""
        if threading.get_ident() in self.forking:
            self.is_used = False
        elif self.is_used:
            self.is_broken = True
        self.forking.clear()


core: Core = Core()
in_child(core.become_child)


def _before_fork() -> None:
    core.forking.add(threading.get_ident())
    were_open = [connections.before_fork() for connections in list(_open)]
    if any(were_open):
        give_up_at = now_seconds() + SHUTDOWN_SECONDS
        while _grpc_is_alive() and now_seconds() < give_up_at:
            time.sleep(0.001)


def _grpc_is_alive() -> bool:
    """True while gRPC has threads: without channels it ends them a moment later, and a fork before that leaves the child half of it."""
    try:
        return any(
            task.joinpath("comm").read_text().startswith(GRPC_THREADS)
            for task in Path("/proc/self/task").iterdir()
        )
    except OSError:  # no Linux, or a thread that has just ended: look again
        return True


def _after_fork_in_parent() -> None:
    core.forking.discard(threading.get_ident())
    for connections in list(_open):
        connections.after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
