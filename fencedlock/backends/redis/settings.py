"""Converts a ``redis://``, ``rediss://`` or ``unix://`` URL to settings of redis-py.

The parts and the query of the URL become arguments of a pool of connections.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from fencedlock.backends.urls import MOST_PORT, SETTINGS, Address
from fencedlock.errors import ConfigurationError

_NOT_TEXT = re.compile(
    r"self|args|kwargs|parser|retry|socket_type|\w+_(options|class|func|provider|packer|dispatcher|context|registry|state|info)"
    r"|maint\w*|orig_\w+|oss_\w+"
)
"""Matches arguments of redis-py's connections that can't be written as text, because they take an
object or are internal to redis-py.
"""

_YES_AND_NO = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n", "off"), False),
}


class _Kind(NamedTuple):
    """How the text of an option is read, and a description of what it must be."""

    read: Callable[[str], Any]
    wanted: str


_TEXT = _Kind(str, "text")
_YES_NO = _Kind(lambda text: _YES_AND_NO[text.lower()], "yes or no")
_NUMBERS: dict[object, _Kind] = {int: _Kind(int, "a whole number"), float: _Kind(float, "a number")}
_SPECIAL = {
    "db": _Kind(lambda text: _within(0, text, 2**31), "the number of a database"),
    "max_connections": _Kind(lambda text: _within(1, text, 2**31), "a number of connections"),
    "protocol": _NUMBERS[int],  # some versions of redis-py leave these two as text
    "ssl_min_version": _NUMBERS[int],
    "port": _Kind(lambda text: _within(1, text, MOST_PORT), f"a port from 1 to {MOST_PORT}"),
}

_OF_POOL = "max_connections"
"""An option that many URLs contain. It belongs to redis-py's pool, which is not used here."""


def _within(least: int, text: str, most: int) -> int:
    number = int(text)
    if not least <= number <= most:
        raise ValueError
    return number


def settings_of(address: Address, socket_timeout_seconds: float) -> dict[str, Any]:
    """Return the arguments of ``redis.ConnectionPool`` for this URL, without I/O.

    Raises ConfigurationError for options that redis-py does not know, and for invalid values.
    """
    import redis

    classes: dict[str, Any] = {
        "rediss": redis.SSLConnection,
        "unix": redis.UnixDomainSocketConnection,
    }
    connection_class = classes.get(address.scheme, redis.Connection)
    kinds = _kinds_of(connection_class)
    address.refuse_other_options(
        kinds, "it takes those options of redis-py's connections that can be written as text"
    )
    settings = {}
    for name, text in address.options.items():
        if text and name not in SETTINGS:  # redis-py ignores an empty one, too
            settings[name] = _read(address, name, text, kinds[name])
    settings.update(_place_of(address))
    settings.update(
        {
            name: value
            for name, value in (("username", address.user), ("password", address.password))
            if value
        }
    )
    settings["socket_timeout"] = socket_timeout_seconds
    if address.scheme == "rediss" and settings.get("ssl_cert_reqs") != "none":
        # By default, redis-py before 6 accepts a certificate for any host name.
        settings.setdefault("ssl_check_hostname", True)
    settings.pop(_OF_POOL, None)
    _try(address, connection_class, settings)
    return {"connection_class": connection_class, **settings}


def _place_of(address: Address) -> dict[str, Any]:
    """Return the arguments that say which server and which database to use."""
    if len(address.hosts) != 1:
        raise address.error(
            f"names {len(address.hosts)} hosts, and a lock on Redis lives on one server: name one"
        )
    host = address.hosts[0]
    if address.scheme == "unix":
        if host.text or host.port:
            raise address.error(
                "names a host, and a socket has none: write unix:///path/to.sock with three slashes"
            )
        if not address.path.strip("/") and not address.options.get("path"):
            raise address.error("names no socket: write unix:///path/to.sock")
        return {"path": address.path} if address.path else {}
    database = address.path.strip("/")
    if database and not re.fullmatch("[0-9]{1,9}", database):
        raise address.error(
            "must have the number of a database after its host and a slash, for example "
            "redis://host:6379/0"
        )
    place: dict[str, Any] = {}
    if host.text:
        place["host"] = host.name
    if host.port:
        place["port"] = host.port
    if database and not address.options.get("db"):  # the query wins, as in redis-py
        place["db"] = int(database)
    return place


def _kinds_of(connection_class: type) -> dict[str, _Kind]:
    """Return the options that this class of redis-py takes as text, by name."""
    from redis.connection import URL_QUERY_ARGUMENT_PARSERS

    kinds = {_OF_POOL: _SPECIAL[_OF_POOL]}
    for cls in connection_class.__mro__:
        own = cls.__dict__.get("__init__")
        if not inspect.isfunction(own):
            continue
        for name, parameter in inspect.signature(own).parameters.items():
            if name in kinds or name.startswith("_") or _NOT_TEXT.fullmatch(name):
                continue
            parser = URL_QUERY_ARGUMENT_PARSERS.get(name)
            if name in _SPECIAL:
                kinds[name] = _SPECIAL[name]
            elif getattr(parser, "__name__", "") == "to_bool" or isinstance(
                parameter.default, bool
            ):
                kinds[name] = _YES_NO  # redis-py's own parser reads any unknown word as yes
            elif parser is not None:
                kinds[name] = _NUMBERS.get(parser) or _Kind(
                    cast("Callable[[str], Any]", parser), "what redis-py takes there"
                )
            else:
                kinds[name] = _NUMBERS.get(type(parameter.default), _TEXT)
    return kinds


def _read(address: Address, name: str, text: str, kind: _Kind) -> Any:
    try:
        return kind.read(text)
    except (ValueError, TypeError, LookupError):
        problem = f"has {name}= in its query, which must be {kind.wanted}"
    # This is outside the handler, because the handled error quotes the text and would be chained.
    raise address.error(problem)


def _try(address: Address, connection_class: Any, settings: dict[str, Any]) -> None:
    """Make a connection object, so that what redis-py refuses is reported before any I/O.

    The object does not connect to anything yet.
    """
    try:
        connection_class(**settings)
    except ConfigurationError:
        raise
    except Exception as error:
        options = ", ".join(f"{name}=" for name in address.options) or "none"
        problem = (
            f"is refused by redis-py ({type(error).__name__}): look at the values of its options, "
            f"which are {options}"
        )
    else:
        return
    # This is outside the handler, because redis-py's error may quote the values.
    raise address.error(problem)
