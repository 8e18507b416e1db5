"""Opens connections with the settings of the user's own client, and tells their errors apart.

redis-py's own retries, health checks and decoding are switched off on them. A retry that the
library does not know of would hide whether a packet had an answer, and the scripts need no
decoding. The user's pool is not used, because the inbox would drain a small one. The settings of
the pool are read each time that a connection is opened, so that a changed password takes effect.
"""

from __future__ import annotations

import codecs
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
from fencedlock.runtime.cooperation import raise_if_patched_too_late
from fencedlock.runtime.interrupts import innermost_module, raised_by_handler
from fencedlock.runtime.process import CopiedProcessError

# Names of hosts are looked up by this codec. If the first use imported it, a fork or a signal
# handler in the middle of the import could leave a process that never finds the codec.
codecs.lookup("idna")

PROBE_AGAIN_SECONDS = 30.0
"""The time for which a server that was found to speak our protocol is not probed again, while no
connection can be opened.
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
