"""The header: ``Fencing-Token: "orders/42";1795217931444040``."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from fencedlock.fencing.base import checked_resource
from fencedlock.token import FencingToken

HEADER = "Fencing-Token"

_PLAIN = " !#$&'()*+,/:;<=>?@[]^`{|}"
_WRITTEN = re.compile(
    r'"((?:[\x20\x21\x23\x24\x26-\x5b\x5d-\x7e]|%[0-9A-Fa-f]{2})+)"[ \t]*;[ \t]*([0-9]{1,19})'
)


def format_token(token: FencingToken) -> str:
    """Return the value of the header for this token.

    It is the lock's name, percent-encoded where it is not plain ASCII, and the decimal number.
    Raises TypeError if ``token`` is not a FencingToken, and ConfigurationError if the lock's name
    can't be that of a resource.
    """
    checked_resource(token, None)
    return f'"{quote(token.lock, safe=_PLAIN)}";{token}'


def parse_token(value: str) -> FencingToken:
    """Return the token of a header's value. Raises ValueError for anything but one token."""
    found = _WRITTEN.fullmatch(value.strip())
    try:
        if found:
            token = FencingToken(unquote(found[1], errors="strict"), int(found[2]))
            checked_resource(token, None)
            return token
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f'a {HEADER} header looks like "orders/42";1795217931444040, not {value!r:.200}'
    )
