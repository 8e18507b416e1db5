"""The functions that make clients: connect, configure, and the default client of a process."""

from __future__ import annotations

import math
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fencedlock.backends.targets import BackendSettings, address_of, backend_factory
from fencedlock.client import Client, Recipe
from fencedlock.core.lease import (
    LEAST_TTL_SECONDS,
    MOST_TTL_SECONDS,
    checked_seconds,
    seconds_wanted,
)
from fencedlock.core.names import NAMESPACE_WANTED, checked_namespace, is_namespace
from fencedlock.errors import ConfigurationError
from fencedlock.runtime.callbacks import (
    Callbacks,
    LossCallback,
    RequestCallback,
    RiskCallback,
    SafetyCallback,
)
from fencedlock.runtime.home import find_default_by
from fencedlock.runtime.interrupts import make_mutex
from fencedlock.runtime.process import in_child

if TYPE_CHECKING:
    from fencedlock.backends.urls import Address

URL_VARIABLE = "FENCEDLOCK_URL"

LEAST_TOKEN_MEMORY_SECONDS = 60
MOST_TOKEN_MEMORY_SECONDS = 10 * 365 * 86400

MOST_UNPICKLED = 32
"""The number of clients made for unpickled locks that are kept when no handle uses them."""

_mutex = make_mutex()
in_child("mutexes", _mutex._at_fork_reinit)
_default: Client | None = None
_by_origin: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()
"""The clients of this process that can be pickled, by origin.

A forked child also finds the clients that it has inherited.
"""
_unpickled: dict[str, Client] = {}
"""The clients that were made last for unpickled locks, by origin.

They are kept alive so that locks that arrive one after another share one client and its threads.
"""


class _DefaultSeconds(float):
    """A default value in seconds.

    The URL and the environment override it. They do not override the same number from the caller.
    """

    __slots__ = ()


class _DefaultText(str):
    """A default text, which the URL and the environment override in the same way."""

    __slots__ = ()


def connect(
    target: Any,
    *,
    ttl: float = _DefaultSeconds(30.0),
    namespace: str = _DefaultText("fencedlock"),
    outage_timeout: float = _DefaultSeconds(30.0),
    on_lost: LossCallback | None = None,
    on_at_risk: RiskCallback | None = None,
    on_safe: SafetyCallback | None = None,
    on_requested: RequestCallback | None = None,
    socket_timeout: float = _DefaultSeconds(5.0),
    token_memory: float | None = None,
) -> Client:
    """Return a client of the lock server at ``target``.

    ``target`` is a URL, or a ready ``redis.Redis``, ``valkey.Valkey`` or ``etcd3.client()`` object.
    The URLs are:

    - ``redis://host:6379/0``
    - ``rediss://host:6379/0`` (TLS); the certificate must be trusted, and be the host's
    - ``unix:///path/to.sock``
    - ``embedded://``, a real local server that is started on demand and shared by the processes of
      this host and user
    - ``etcd://user:password@h1:2379,h2:2379``
    - ``etcds://h1?ca=ca.pem&cert=own.pem&key=own.key`` (TLS); the query is optional

    The query of a redis URL may contain options of redis-py. In user names, passwords and options,
    characters that have a meaning in URLs must be percent-encoded.

    The settings are:

    - ``ttl``: the length of a lease in seconds, at least 0.1. It is how long others wait after the
      process of a holder has died.
    - ``namespace``: the beginning of every key on the server.
    - ``outage_timeout``: for how many seconds an ``acquire`` without a timeout waits for a server
      that does not answer.
    - ``on_lost``: is called as ``on_lost(lock, reason)`` when a lease is lost.
    - ``on_at_risk``: is called as ``on_at_risk(lock, remaining)`` when a beat for a held lock was
      not answered. ``remaining`` is the number of seconds until the lease ends. Begin no new work.
    - ``on_safe``: is called as ``on_safe(lock)`` when beats are answered again after that.
    - ``on_requested``: is called as ``on_requested(lock, reason)`` when somebody has asked for a
      held lock, by :meth:`Client.request_release`. These four are called on a thread of their own,
      one after another.
    - ``socket_timeout``: for how many seconds one request waits for its answer. A request about a
      short lease waits at most 0.3 of that lease.
    - ``token_memory``: for how many seconds at least a Redis server remembers the last token of a
      lock after its last use; 7 days by default, at least 60. When a name is forgotten, its tokens
      still rise, because they follow the server's clock, but its floor from ``raise_floor`` is
      forgotten too. All clients of a lock should have the same setting. etcd does not need it, and
      with etcd it raises ConfigurationError.

    All settings but these three may also be given in the query of any URL, as in
    ``redis://host/0?ttl=10&namespace=shop``. An argument takes precedence over the URL.

    The client connects when it is first used. Raises ConfigurationError, before any I/O, if the
    target or a setting is wrong. No error shows more of a URL than its scheme, hosts, ports and
    database.
    """
    given = {
        "ttl": ttl,
        "namespace": namespace,
        "outage_timeout": outage_timeout,
        "socket_timeout": socket_timeout,
        "token_memory": token_memory,
    }
    return _connect(target, given, Callbacks(on_lost, on_at_risk, on_safe, on_requested).checked())


def _connect(
    target: Any,
    given: dict[str, Any],
    callbacks: Callbacks,
    *,
    origin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Client:
    """Do what :func:`connect` does, with the settings in ``given``.

    ``environment`` is passed if the URL comes from there. Then it may have the settings too.
    """
    where = "" if environment is None else f"in the environment variable {URL_VARIABLE}"
    address = address_of(target, where) if isinstance(target, str) else None
    settings = {
        name: _setting(name, value, address, environment or {}) for name, value in given.items()
    }
    recipe = None
    if address is not None:
        recipe = Recipe(
            connect_again,
            str.__str__(target),
            {**settings, "callbacks": callbacks},
            origin or secrets.token_hex(16),
        )
    client = Client(
        backend_factory(
            target if address is None else address,
            BackendSettings(
                settings["namespace"], settings["socket_timeout"], settings["token_memory"]
            ),
        ),
        ttl=settings["ttl"],
        outage_timeout=settings["outage_timeout"],
        callbacks=callbacks,
        recipe=recipe,
    )
    if recipe is not None:
        with _mutex:
            _by_origin[recipe.origin] = client
    return client


def connect_again(url: str, settings: dict[str, Any], origin: str) -> Client:
    """Return the open client of this process that has this origin, or else make it.

    Unpickled locks and clients call it.
    """
    with _mutex:
        client = _by_origin.get(origin)
        if client is None or client.closed:
            given = dict(settings)
            client = _connect(url, given, given.pop("callbacks"), origin=origin)
            _unpickled.pop(origin, None)
            _unpickled[origin] = client
            while len(_unpickled) > MOST_UNPICKLED:
                del _unpickled[next(iter(_unpickled))]
        return client


def configure(target: Any, **settings: Any) -> Client:
    """Make the default client of this process, and return it.

    Locks that are made without ``client=`` use it. The arguments and errors are those of
    :func:`connect`. Call it before the first lock is made, because locks that exist keep their
    client.
    """
    return _become_default(connect(target, **settings))


def _become_default(client: Client) -> Client:
    global _default
    with _mutex:
        _default = client
    return client


def default_client() -> Client:
    """Return the client of :func:`configure`, or else make one from ``FENCEDLOCK_URL``.

    With that environment variable, ``FENCEDLOCK_TTL``, ``FENCEDLOCK_NAMESPACE``,
    ``FENCEDLOCK_OUTAGE_TIMEOUT``, ``FENCEDLOCK_SOCKET_TIMEOUT`` and ``FENCEDLOCK_TOKEN_MEMORY`` are
    used for settings that the URL does not have.

    Raises ConfigurationError if neither is there. There is no default server, because a forgotten
    setting must not turn one lock for all hosts into one lock on each host.
    """
    with _mutex:
        if _default is not None and not _default.closed:
            return _default
        url = os.environ.get(URL_VARIABLE)
        if not url:
            raise ConfigurationError(
                "no lock server is configured: call fencedlock.configure('redis://host:6379/0'), "
                f"or set the environment variable {URL_VARIABLE}, or pass client= to the lock. For "
                "one host, 'embedded://' starts a local server"
            )
        return _become_default(_connect(url, dict(_DEFAULTS), Callbacks(), environment=os.environ))


find_default_by(default_client)


def _checked_positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
    return float(value)


class _Kind(NamedTuple):
    """How the value of a setting is checked and read."""

    checked: Callable[[Any], Any]
    """Returns a valid value. Raises ConfigurationError, which shows the value, for others."""
    read: Callable[[str], Any]
    """Returns the value of a text. Raises ValueError if it is not valid."""
    wanted: str
    """What a valid value is, in words."""


def _read_namespace(text: str) -> str:
    if not is_namespace(text):
        raise ValueError
    return text


def _positive(name: str) -> _Kind:
    return _Kind(
        lambda value: _checked_positive(name, value),
        lambda text: _checked_positive(name, float(text)),
        "a positive number of seconds",
    )


def _between(name: str, least: float, most: float) -> _Kind:
    return _Kind(
        lambda value: checked_seconds(name, value, least, most),
        lambda text: checked_seconds(name, float(text), least, most),
        seconds_wanted(least, most),
    )


_KINDS = {
    "ttl": _between("ttl", LEAST_TTL_SECONDS, MOST_TTL_SECONDS),
    "namespace": _Kind(checked_namespace, _read_namespace, NAMESPACE_WANTED),
    "outage_timeout": _positive("outage_timeout"),
    "socket_timeout": _positive("socket_timeout"),
    "token_memory": _between("token_memory", LEAST_TOKEN_MEMORY_SECONDS, MOST_TOKEN_MEMORY_SECONDS),
}
_DEFAULTS: dict[str, Any] = {
    "ttl": _DefaultSeconds(30.0),
    "namespace": _DefaultText("fencedlock"),
    "outage_timeout": _DefaultSeconds(30.0),
    "socket_timeout": _DefaultSeconds(5.0),
    "token_memory": None,
}


def _setting(name: str, given: Any, address: Address | None, environment: Mapping[str, str]) -> Any:
    """Return the value of a setting.

    It is the caller's, or else the URL's, or else the environment's, or else the default.
    """
    kind = _KINDS[name]
    is_default = isinstance(given, (_DefaultSeconds, _DefaultText)) or (
        given is None and _DEFAULTS[name] is None
    )
    if not is_default:
        return kind.checked(given)
    variable = f"FENCEDLOCK_{name.upper()}"
    if address is not None and name in address.options:
        text, place = address.options[name], f"{name}= in the query of {address.described}"
    elif environment.get(variable):
        text, place = environment[variable], f"the environment variable {variable}"
    else:
        return given if given is None else float(given) if isinstance(given, float) else str(given)
    try:
        return kind.read(text)
    except ValueError:
        problem = f"{place} must be {kind.wanted}"
    # Not raised in the handler, because the ValueError would be shown with it. That one quotes the
    # text, which may be a password.
    raise ConfigurationError(problem)
