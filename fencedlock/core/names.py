"""The checks of names and namespaces that apply to every backend."""

from __future__ import annotations

import re
from urllib.parse import quote

from fencedlock.errors import ConfigurationError

MOST_NAME_BYTES = 4096

_NEVER_IN_NAMESPACES = re.compile(r"[%{}\x00-\x1f\x7f-\x9f]")


def checked_name(name: str) -> str:
    """Return the name if it can be the name of a lock. Raises ConfigurationError otherwise."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"a lock's name must be a str, not {type(name).__name__}: {name!r}"
        )
    if not name:
        raise ConfigurationError(
            "a lock's name must not be empty: name the thing that it protects, for example "
            "'orders/42'"
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"a lock's name must be encodable as UTF-8, and {name!r} is not: {error.reason}"
        ) from None
    if size > MOST_NAME_BYTES:
        raise ConfigurationError(
            f"a lock's name must not be longer than {MOST_NAME_BYTES} bytes in UTF-8, and this one "
            f"has {size}: use a digest"
        )
    return name


def checked_namespace(namespace: str) -> str:
    """Return the namespace if a key can begin with it. Raises ConfigurationError otherwise."""
    if not isinstance(namespace, str) or not is_namespace(namespace):
        raise ConfigurationError(f"namespace must be {NAMESPACE_WANTED}, not {namespace!r}")
    return namespace


NAMESPACE_WANTED = (
    "a non-empty str, encodable as UTF-8, without braces, percent signs and control characters"
)


def is_namespace(text: str) -> bool:
    """Return True if a key can begin with this text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and not _NEVER_IN_NAMESPACES.search(text)


def encoded(name: str, needs_encoding: re.Pattern[str]) -> str:
    """Return the name with the characters that the pattern finds percent-encoded.

    Two different names never get the same key, provided that the pattern finds ``%`` too.
    """
    return needs_encoding.sub(lambda match: quote(match[0], safe=""), name)
