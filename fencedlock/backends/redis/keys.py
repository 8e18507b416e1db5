"""Converts names of locks to keys on the server, and back."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fencedlock.core.names import checked_name, encoded

_NEEDS_ENCODING = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")
_GLOB = re.compile(r"([*?\[\]^\\-])")


def lock_key(namespace: str, name: str) -> str:
    """Return the key of the lock's hash, which is ``namespace:{name}``.

    The name is in braces so that all keys of the lock share a hash slot. Braces, the percent sign
    and control characters in the name are percent-encoded, so two names never share a key.

    Raises ConfigurationError for an invalid name.
    """
    return f"{namespace}:{{{encoded(checked_name(name), _NEEDS_ENCODING)}}}"


def keys_of(key: str) -> tuple[str, ...]:
    """Return all keys of the lock whose hash has this key, in the order of the scripts' KEYS."""
    return tuple(f"{key}{suffix}" for suffix in ("", ":queue", ":waiters", ":fence", ":withdrawn"))


def scan_pattern(namespace: str, prefix: str) -> str:
    """Return a glob pattern for the keys of all locks whose names begin with ``prefix``."""
    return _GLOB.sub(r"\\\1", f"{namespace}:{{{encoded(prefix, _NEEDS_ENCODING)}") + "*"


def name_of(namespace: str, key: str) -> str | None:
    """Return the name of the lock whose hash or queue has this key, or None for other keys."""
    encoded, closed, suffix = key[len(namespace) + 2 :].partition("}")
    return unquote(encoded) if closed and suffix in ("", ":queue") else None
