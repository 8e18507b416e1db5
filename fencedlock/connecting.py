"""connect, configure, and the default client of a process."""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from fencedlock.client import Client
from fencedlock.errors import ConfigurationError
from fencedlock.hold import LEAST_TTL_SECONDS, MOST_TTL_SECONDS
from fencedlock.process import in_child

if TYPE_CHECKING:
    from fencedlock.losses import LossCallback

URL_VARIABLE = "FENCEDLOCK_URL"

_mutex = threading.RLock()
in_child(_mutex._at_fork_reinit)  # type: ignore[attr-defined]
_default: Client | None = None
_by_recipe: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()
_unpickled: dict[str, Client] = {}
"""Kept, so that locks that come by pickle one after another share one client, and its threads and connections."""


def connect(
    target: Any,
    *,
    ttl: float = 30.0,
    namespace: str = "fencedlock",
    outage_timeout: float = 30.0,
    on_lost: LossCallback | None = None,
    socket_timeout: float = 5.0,
) -> Client:
    """A client of the lock server at ``target``: a URL, or a ready ``redis.Redis``, ``valkey.Valkey`` or ``etcd3.client()`` object.

    URLs: ``redis://host:6379/0``, ``rediss://`` (TLS), ``unix:///path/to.sock``, and ``embedded://``, a real local server that is
    started on demand and shared by the processes of this host and user. Options of redis-py may stand in a redis URL's query.
    ``etcd://user:password@h1:2379,h2:2379``, and ``etcds://h1?ca=ca.pem&cert=own.pem&key=own.key`` (TLS); the query is optional.

    ``ttl`` is the lease in seconds, at least 0.1: how long others wait after a holder's process died. ``namespace`` begins every
    key. ``outage_timeout`` is how many seconds an ``acquire`` without a timeout puts up with a server that does not answer.
    ``on_lost(lock, reason)`` is called, on a thread of its own, when a lease is lost. ``socket_timeout`` is how many seconds one
    request waits for its answer; requests about a short lease wait at most 0.3 of it.

    Connects on first need. Raises ConfigurationError, before any I/O, for a wrong target or setting.
    """
    from fencedlock.backends.urls import backend_factory

    settings = {
        "ttl": checked_ttl(ttl),
        "namespace": namespace,
        "outage_timeout": _checked_seconds("outage_timeout", outage_timeout),
        "socket_timeout": _checked_seconds("socket_timeout", socket_timeout),
        "on_lost": on_lost,
    }
    client = Client(
        backend_factory(target, namespace=namespace, socket_timeout_seconds=socket_timeout),
        ttl=ttl,
        outage_timeout=outage_timeout,
        on_lost=on_lost,
        recipe=(target, settings) if isinstance(target, str) else None,
    )
    if client.recipe is not None:
        with _mutex:
            _by_recipe.setdefault(repr(client.recipe), client)
    return client


def connect_again(url: str, settings: dict[str, Any]) -> Client:
    """The client of this process that was made by the same settings, or a new one: for pickled locks."""
    with _mutex:
        client = _by_recipe.get(repr((url, settings)))
        if client is None or client.closed:
            _by_recipe.pop(repr((url, settings)), None)
            client = connect(url, **settings)
            _unpickled[repr(client.recipe)] = client
        return client


def configure(target: Any, **settings: Any) -> Client:
    """Make, and return, the default client of this process, for locks that are given none. Arguments as of :func:`connect`.

    Call it before the first lock is made: locks that exist keep the client they have.
    """
    global _default
    client = connect(target, **settings)
    with _mutex:
        _default = client
    return client


def default_client() -> Client:
    """The client of :func:`configure`, else one of the environment variable ``FENCEDLOCK_URL``.

    Raises ConfigurationError if there is neither: a forgotten setting must not turn a lock across hosts into one on each host.
    """
    with _mutex:
        if _default is not None and not _default.closed:
            return _default
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise ConfigurationError(
                "no lock server is configured: call fencedlock.configure('redis://host:6379/0'), or set the environment variable "
                f"{URL_VARIABLE}, or pass client= to the lock. For one host, 'embedded://' starts a local server"
            )
        return configure(url)


def checked_ttl(ttl: float) -> float:
    """The lease in seconds, if it can be one. Raises ConfigurationError."""
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not LEAST_TTL_SECONDS <= ttl <= MOST_TTL_SECONDS:
        raise ConfigurationError(f"ttl must be a number of seconds from {LEAST_TTL_SECONDS} to {MOST_TTL_SECONDS:.0f}, not {ttl!r}")
    return float(ttl)


def _checked_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
    return float(value)
