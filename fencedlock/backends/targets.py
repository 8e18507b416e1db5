"""Makes a backend from a URL or from a ready client object."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from fencedlock.backends.urls import Address, Host, parsed, scheme_of, without_password
from fencedlock.core.backend import Backend, BackendFactory
from fencedlock.errors import ConfigurationError

if TYPE_CHECKING:
    from fencedlock.backends.etcd.connections import Connections

__all__ = ["BackendSettings", "address_of", "backend_factory", "without_password"]


def address_of(url: str, where: str = "") -> Address:
    """Return the parts of a lock server's URL.

    ``where`` says in errors where the URL comes from.

    Raises ConfigurationError if the text is not such a URL. What the error shows of it gives no
    access.
    """
    url = str.__str__(url)  # a subclass may hide its password in its own __str__
    scheme = scheme_of(url)
    if scheme not in _SCHEMES:
        known = ", ".join(f"{known}://" for known in _SCHEMES)
        begins = f"begins with {f'{scheme}://'!r}" if scheme else "has no scheme"
        described = f"the URL {where}" if where else "the URL"
        raise ConfigurationError(
            f"unknown kind of lock server: {described} {begins}, and it must begin with one of "
            f"{known}"
        )
    return parsed(url, where)


class BackendSettings(NamedTuple):
    """The settings of a client that its backend needs, whatever the server."""

    namespace: str
    socket_timeout_seconds: float
    token_memory_seconds: float | None
    """None means the usual time of the server."""


def backend_factory(target: Any, settings: BackendSettings) -> BackendFactory:
    """Return a function that makes the backend of one client for this target.

    The target is an :class:`Address` or a ready client object.

    Raises ConfigurationError, before any I/O, for an invalid target.
    """
    if isinstance(target, Address):
        return _SCHEMES[target.scheme](target, settings)
    from fencedlock.backends.etcd.ready import is_ready_client

    if is_ready_client(target):
        return _ready_etcd3_client(target, settings)
    _refuse_what_is_no_client(target)
    return _ready_client(target, settings)


_ADVICE = "pass a URL or a redis.Redis (valkey.Valkey) object, or an etcd3.client()"


def _is_of(*names: str) -> Callable[[Any], bool]:
    """Return a test that is true for objects of a class, or of a base class, with such a name.

    The test needs no import of these classes.
    """
    return lambda target: any(cls.__name__ in names for cls in type(target).__mro__)


def _is_asynchronous(target: Any) -> bool:
    return any("asyncio" in cls.__module__.split(".") for cls in type(target).__mro__)


def _has_no_connections(target: Any) -> bool:
    return getattr(getattr(target, "connection_pool", None), "connection_class", None) is None


_NO_CLIENTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda target: target is None, "it stands for no server at all"),
    (
        lambda target: isinstance(target, (bytes, bytearray, memoryview)),
        "decode it, because a URL is a str",
    ),
    (
        lambda target: isinstance(target, os.PathLike),
        "the URL of a socket is unix:///the/socket, that of a folder embedded:///the/folder",
    ),
    (lambda target: isinstance(target, type), "it is a class, and not an object of it"),
    (lambda target: hasattr(target, "geturl"), "take its geturl()"),
    (
        lambda target: isinstance(target, (list, tuple, set, frozenset, dict)),
        "a client has one target; an etcd:// URL names several hosts",
    ),
    (_is_asynchronous, "it is an asyncio client, and locks need one of the blocking kind"),
    (_is_of("RedisCluster", "ValkeyCluster"), "it is a cluster, and a lock lives on one server"),
    (_is_of("Sentinel"), "take its master_for(service), which is a client of the master"),
    (_is_of("ConnectionPool"), "make a client of it, as redis.Redis(connection_pool=pool)"),
    (_has_no_connections, "it is no client of a kind that is known here"),
)
"""Tests for objects that are passed by mistake, each with what to do about it."""


def _refuse_what_is_no_client(target: Any) -> None:
    """Raise ConfigurationError for targets through which nothing can be locked.

    The error does not show the target, because some targets hold a password.
    """
    for matches, words in _NO_CLIENTS:
        if matches(target):
            raise ConfigurationError(
                f"can't lock through this {type(target).__name__}: {words}; {_ADVICE}"
            )


def _redis_url(address: Address, settings: BackendSettings) -> BackendFactory:
    import redis

    from fencedlock.backends.redis.settings import settings_of

    pool = redis.ConnectionPool(**settings_of(address, settings.socket_timeout_seconds))
    return _ready_client(redis.Redis(connection_pool=pool), settings)


def _ready_client(client: Any, settings: BackendSettings) -> BackendFactory:
    return partial(_redis_backend, client, settings)


def _embedded(address: Address, settings: BackendSettings) -> BackendFactory:
    if os.name != "posix":
        raise ConfigurationError(
            "embedded:// needs a POSIX system: run a redis-server and use its redis:// URL"
        )
    address.refuse_other_options((), "it takes no options of a server")
    if address.user or address.password or address.hosts != (Host("", None),):
        raise address.error(
            "can name a folder, but no user and no host: write embedded://, or "
            "embedded:///absolute/folder with three slashes"
        )
    from fencedlock.backends.embedded import EmbeddedServer

    url = f"embedded://{quote(address.path)}"
    EmbeddedServer(url)  # raises ConfigurationError now instead of at the first use

    def make(client_id: str) -> Backend:
        server = EmbeddedServer(url)  # a forked child makes one of its own
        return _redis_backend(server.client(), settings, client_id, on_close=server.leave)

    return make


def _redis_backend(
    client: Any,
    settings: BackendSettings,
    client_id: str,
    *,
    on_close: Callable[[], None] = lambda: None,
) -> Backend:
    from fencedlock.backends.redis.backend import RedisBackend
    from fencedlock.backends.redis.connector import Connector
    from fencedlock.backends.redis.scripts import scripts_of

    connector = Connector(client)
    timeout_seconds = min(
        settings.socket_timeout_seconds,
        connector.socket_timeout_seconds or settings.socket_timeout_seconds,
    )
    scripts = (
        scripts_of()
        if settings.token_memory_seconds is None
        else scripts_of(settings.token_memory_seconds)
    )
    return RedisBackend(
        connector, client_id, settings.namespace, timeout_seconds, scripts, on_close
    )


def _etcd_url(address: Address, settings: BackendSettings) -> BackendFactory:
    from fencedlock.backends.etcd.settings import settings_of

    of_etcd = settings_of(address)
    from fencedlock.backends.etcd.connections import Connections

    return _etcd_backend(partial(Connections, of_etcd), settings)


def _ready_etcd3_client(client: Any, settings: BackendSettings) -> BackendFactory:
    from fencedlock.backends.etcd.ready import ReadyConnections

    return _etcd_backend(partial(ReadyConnections, client, os.getpid()), settings)


def _etcd_backend(connect: Callable[[], Connections], settings: BackendSettings) -> BackendFactory:
    if settings.token_memory_seconds is not None:
        raise ConfigurationError(
            "token_memory is for Redis: leave it out with etcd, whose tokens are the revision of "
            "the cluster and need no memory for each lock"
        )
    from fencedlock.backends.etcd.backend import EtcdBackend

    return lambda _client_id: EtcdBackend(
        connect(), settings.namespace, settings.socket_timeout_seconds
    )


_SCHEMES: dict[str, Callable[[Address, BackendSettings], BackendFactory]] = {
    "redis": _redis_url,
    "rediss": _redis_url,
    "unix": _redis_url,
    "etcd": _etcd_url,
    "etcds": _etcd_url,
    "embedded": _embedded,
}
