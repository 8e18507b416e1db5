"""The keys of a lock, and the names that can be one."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from fencedlock.errors import ConfigurationError

MOST_NAME_BYTES = 4096

_NEEDS_ENCODING = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")
_GLOB = re.compile(r"([*?\[\]^\\-])")


def lock_key(namespace: str, name: str) -> str:
    """The key of the lock's hash: ``namespace:{name}``, the name in braces so that all its keys share a hash slot.

    Braces, the percent sign and control characters are percent-encoded, so two names never share a key.
    Raises ConfigurationError for what can't be a name.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"a lock's name must be a str, not {type(name).__name__}: {name!r}")
    if not name:
        raise ConfigurationError("a lock's name must not be empty: name the thing that it protects, as 'orders/42'")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"a lock's name must be encodable as UTF-8, and {name!r} is not: {error.reason}") from None
    if size > MOST_NAME_BYTES:
        raise ConfigurationError(
            f"a lock's name must not be longer than {MOST_NAME_BYTES} bytes in UTF-8, and this one has {size}: use a digest"
        )
    return f"{namespace}:{{{_encoded(name)}}}"


def keys_of(key: str) -> tuple[bytes, ...]:
    """All keys of the lock whose hash has this key, in the order of the scripts' KEYS."""
    return tuple(f"{key}{suffix}".encode() for suffix in ("", ":queue", ":waiters", ":fence", ":withdrawn"))


def scan_pattern(namespace: str, prefix: str) -> str:
    """A glob pattern for the keys of all locks whose names begin with ``prefix``."""
    return _GLOB.sub(r"\\\1", f"{namespace}:{{{_encoded(prefix)}") + "*"


def name_of(namespace: str, key: str) -> str | None:
    """The name of the lock whose hash or queue has this key; None for its other keys."""
    encoded, closed, suffix = key[len(namespace) + 2 :].partition("}")
    return unquote(encoded) if closed and suffix in ("", ":queue") else None


def checked_namespace(namespace: str) -> str:
    """The namespace, if it can begin a key. Raises ConfigurationError otherwise."""
    if not isinstance(namespace, str) or not namespace or _NEEDS_ENCODING.search(namespace):
        raise ConfigurationError(
            f"a namespace must be a non-empty str without braces, percent signs and control characters, not {namespace!r}"
        )
    return namespace


def _encoded(name: str) -> str:
    return _NEEDS_ENCODING.sub(lambda match: quote(match[0], safe=""), name)
