"""connect, configure, and the default client of a process."""

from __future__ import annotations

import math
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fencedlock.backends.urls import BackendSettings, address_of, backend_factory
from fencedlock.client import Client, Recipe
from fencedlock.core.lease import (
    LEAST_TTL_SECONDS,
    MOST_TTL_SECONDS,
    checked_seconds,
    seconds_wanted,
)
from fencedlock.core.names import NAMESPACE_WANTED, checked_namespace, is_namespace
from fencedlock.errors import ConfigurationError
from fencedlock.runtime.home import find_default_by
from fencedlock.runtime.process import in_child
from fencedlock.runtime.threads import make_mutex

if TYPE_CHECKING:
    from fencedlock.backends.address import Address
    from fencedlock.primitives.locks import LossCallback

URL_VARIABLE = "FENCEDLOCK_URL"

LEAST_TOKEN_MEMORY_SECONDS = 60
MOST_TOKEN_MEMORY_SECONDS = 10 * 365 * 86400

MOST_UNPICKLED = 32
"""So many clients that came by pickle are kept although no handle of theirs is left."""

_mutex = make_mutex()
in_child(_mutex._at_fork_reinit)
_default: Client | None = None
_by_origin: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()
"""The clients of this process that can be pickled. A forked child finds those that it has
inherited.
"""
_unpickled: dict[str, Client] = {}
"""The latest clients that were made for pickled locks, by origin. Locks that come one after another
share one client, and its threads.
"""


class _DefaultSeconds(float):
    """A default.

    Unlike the same number given by the caller, it gives way to the URL's and the environment's.
    """

    __slots__ = ()


class _DefaultText(str):
    """The same for text."""

    __slots__ = ()


def connect(
    target: Any,
    *,
    ttl: float = _DefaultSeconds(30.0),
    namespace: str = _DefaultText("fencedlock"),
    outage_timeout: float = _DefaultSeconds(30.0),
    on_lost: LossCallback | None = None,
    socket_timeout: float = _DefaultSeconds(5.0),
    token_memory: float | None = None,
) -> Client:
    """A client of the lock server at ``target``: a URL, or a ready ``redis.Redis``, ``valkey.Valkey`` or ``etcd3.client()`` object.

    URLs: ``redis://host:6379/0``, ``rediss://`` (TLS; the certificate must be trusted, and be the
    host's), ``unix:///path/to.sock``, and ``embedded://``, a real local server that is started on
    demand and shared by the processes of this host and user. Options of redis-py may stand in a
    redis URL's query. ``etcd://user:password@h1:2379,h2:2379``, and
    ``etcds://h1?ca=ca.pem&cert=own.pem&key=own.key`` (TLS); the query is optional. Characters with
    a meaning in URLs are percent-encoded in user names, passwords and options.

    ``ttl`` is the lease in seconds, at least 0.1: how long others wait after a holder's process
    died. ``namespace`` begins every key. ``outage_timeout`` is how many seconds an ``acquire``
    without a timeout puts up with a server that does not answer. ``on_lost(lock, reason)`` is
    called, on a thread of its own, when a lease is lost. ``socket_timeout`` is how many seconds one
    request waits for its answer; requests about a short lease wait at most 0.3 of it.
    ``token_memory`` is how many seconds, at least, a Redis server remembers a lock's last token
    after its last use: 7 days by default, at least 60. Tokens of a forgotten name rise as the
    server's clock does; what ``raise_floor`` has set for it is forgotten too. All clients of a lock
    should have the same. etcd needs none, and refuses it.

    ``ttl``, ``namespace``, ``outage_timeout``, ``socket_timeout`` and ``token_memory`` may also
    stand in the query of any URL, as ``redis://host/0?ttl=10&namespace=shop``. An argument wins
    over the URL.

    Connects on first need. Raises ConfigurationError, before any I/O, for a wrong target or
    setting. No error shows more of a URL than its scheme, hosts, ports and database.
    """
    given = {
        "ttl": ttl,
        "namespace": namespace,
        "outage_timeout": outage_timeout,
        "socket_timeout": socket_timeout,
        "token_memory": token_memory,
    }
    return _connect(target, given, on_lost)


def _connect(
    target: Any,
    given: dict[str, Any],
    on_lost: LossCallback | None,
    *,
    origin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Client:
    """As :func:`connect`. ``environment`` is that of a process whose client comes from there."""
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
            {**settings, "on_lost": on_lost},
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
        on_lost=on_lost,
        recipe=recipe,
    )
    if recipe is not None:
        with _mutex:
            _by_origin[recipe.origin] = client
    return client


def connect_again(url: str, settings: dict[str, Any], origin: str) -> Client:
    """For what comes by pickle: the client of this process with this origin, or a new one for it if there is none that is open."""
    with _mutex:
        client = _by_origin.get(origin)
        if client is None or client.closed:
            given = dict(settings)
            client = _connect(url, given, given.pop("on_lost"), origin=origin)
            _unpickled.pop(origin, None)
            _unpickled[origin] = client
            while len(_unpickled) > MOST_UNPICKLED:
                del _unpickled[next(iter(_unpickled))]
        return client


def configure(target: Any, **settings: Any) -> Client:
    """Make, and return, the default client of this process, for locks that are given none.

    Arguments as of :func:`connect`.

    Call it before the first lock is made: locks that exist keep the client they have.
    """
    return _become_default(connect(target, **settings))


def _become_default(client: Client) -> Client:
    global _default
    with _mutex:
        _default = client
    return client


def default_client() -> Client:
    """The client of :func:`configure`, else one of the environment variable ``FENCEDLOCK_URL``.

    For the latter, ``FENCEDLOCK_TTL``, ``FENCEDLOCK_NAMESPACE``, ``FENCEDLOCK_OUTAGE_TIMEOUT``,
    ``FENCEDLOCK_SOCKET_TIMEOUT`` and ``FENCEDLOCK_TOKEN_MEMORY`` are the settings that the URL does
    not have.

    Raises ConfigurationError if there is neither: a forgotten setting must not turn a lock across
    hosts into one on each host.
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
        return _become_default(_connect(url, dict(_DEFAULTS), None, environment=os.environ))


find_default_by(default_client)


def _checked_positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive number of seconds, not {value!r}")
    return float(value)


class _Kind(NamedTuple):
    """What a setting must be."""

    checked: Callable[[Any], Any]
    """Its value, if it can be one. Raises ConfigurationError, which shows it."""
    read: Callable[[str], Any]
    """Its value from text. Raises ValueError."""
    wanted: str
    """In words."""


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
    """The value of a setting: the caller's, or else the URL's, or else the environment's, or else the default."""
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
    # Not in the handler: the error that came of it quotes the text, which may be a password.
    raise ConfigurationError(problem)
