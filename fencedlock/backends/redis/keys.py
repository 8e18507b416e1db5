"""The keys of a lock, and the names that can be one."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fencedlock.core.names import checked_name, encoded

_NEEDS_ENCODING = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")
_GLOB = re.compile(r"([*?\[\]^\\-])")


def lock_key(namespace: str, name: str) -> str:
    """The key of the lock's hash: ``namespace:{name}``, the name in braces so that all its keys share a hash slot.

    Braces, the percent sign and control characters are percent-encoded, so two names never share a
    key. Raises ConfigurationError for what can't be a name.
    """
    return f"{namespace}:{{{encoded(checked_name(name), _NEEDS_ENCODING)}}}"


def keys_of(key: str) -> tuple[str, ...]:
    """All keys of the lock whose hash has this key, in the order of the scripts' KEYS."""
    return tuple(f"{key}{suffix}" for suffix in ("", ":queue", ":waiters", ":fence", ":withdrawn"))


def scan_pattern(namespace: str, prefix: str) -> str:
    """A glob pattern for the keys of all locks whose names begin with ``prefix``."""
    return _GLOB.sub(r"\\\1", f"{namespace}:{{{encoded(prefix, _NEEDS_ENCODING)}") + "*"


def name_of(namespace: str, key: str) -> str | None:
    """The name of the lock whose hash or queue has this key; None for its other keys."""
    encoded, closed, suffix = key[len(namespace) + 2 :].partition("}")
    return unquote(encoded) if closed and suffix in ("", ":queue") else None
