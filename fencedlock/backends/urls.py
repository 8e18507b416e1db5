"""From a URL or a ready client object to a backend."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fencedlock.backends.base import Backend, BackendFactory
from fencedlock.errors import ConfigurationError

if TYPE_CHECKING:
    from fencedlock.backends.etcd.connections import Connections


def backend_factory(target: Any, *, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    """What makes the backend of one client for this target.

    Raises ConfigurationError, before any I/O, for a target that can't be one.
    """
    try:
        return _opener(target)(target, namespace, socket_timeout_seconds)
    except ConfigurationError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"can't make sense of {_shown(target)}: {error}") from error


def _opener(target: Any) -> Callable[[Any, str, float], BackendFactory]:
    if not isinstance(target, str):
        from fencedlock.backends.etcd.ready import is_ready_client

        return _ready_etcd3_client if is_ready_client(target) else _ready_client
    scheme = urlsplit(target).scheme
    try:
        return _SCHEMES[scheme]
    except KeyError:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigurationError(
            f"unknown kind of lock server {without_password(target)!r}: a URL must begin with one of {known}"
        ) from None


def _shown(target: Any) -> str:
    return repr(without_password(target)) if isinstance(target, str) else f"this {type(target).__name__}"


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"(?<=:)[^:/@]+(?=@)", "***", url, count=1)


def _redis_url(url: str, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    import redis

    database = urlsplit(url).path.strip("/")
    if not url.startswith("unix:") and database and not database.isdecimal():
        raise ConfigurationError(f"the database in {without_password(url)!r} must be a number, not {database!r}")
    pool = redis.ConnectionPool.from_url(url, socket_timeout=socket_timeout_seconds)
    return _ready_client(redis.Redis(connection_pool=pool), namespace, socket_timeout_seconds)


def _ready_client(client: Any, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    return partial(_redis_backend, client, namespace, socket_timeout_seconds)


def _embedded(url: str, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    if os.name != "posix":
        raise ConfigurationError("embedded:// needs a POSIX system: run a redis-server and use its redis:// URL")
    from fencedlock.backends.embedded import EmbeddedServer

    EmbeddedServer(url)  # raises for what can't be

    def make(client_id: str) -> Backend:
        server = EmbeddedServer(url)  # in a forked child too it is this process's own
        return _redis_backend(server.client(), namespace, socket_timeout_seconds, client_id, on_close=server.leave)

    return make


def _redis_backend(
    client: Any, namespace: str, socket_timeout_seconds: float, client_id: str, *, on_close: Callable[[], None] = lambda: None
) -> Backend:
    from fencedlock.backends.redis.backend import RedisBackend
    from fencedlock.backends.redis.connections import Connector

    connector = Connector(client)
    timeout_seconds = min(socket_timeout_seconds, connector.socket_timeout_seconds or socket_timeout_seconds)
    return RedisBackend(connector, client_id, namespace, timeout_seconds, on_close)


def _etcd_url(url: str, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    from fencedlock.backends.etcd.connections import Connections
    from fencedlock.backends.etcd.settings import settings_of_url

    return _etcd_backend(partial(Connections, settings_of_url(url)), namespace, socket_timeout_seconds)


def _ready_etcd3_client(client: Any, namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    from fencedlock.backends.etcd.ready import ReadyConnections

    return _etcd_backend(partial(ReadyConnections, client, os.getpid()), namespace, socket_timeout_seconds)


def _etcd_backend(connect: Callable[[], Connections], namespace: str, socket_timeout_seconds: float) -> BackendFactory:
    from fencedlock.backends.etcd.backend import EtcdBackend

    return lambda _client_id: EtcdBackend(connect(), namespace, socket_timeout_seconds)


_SCHEMES: dict[str, Callable[[Any, str, float], BackendFactory]] = {
    "redis": _redis_url,
    "rediss": _redis_url,
    "unix": _redis_url,
    "etcd": _etcd_url,
    "etcds": _etcd_url,
    "embedded": _embedded,
}
