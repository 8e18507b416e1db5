"""Tokens between services: a header, middleware that refuses stale requests, and hooks for clients.

The header is ``Fencing-Token: "orders/42";1795217931444040``. A stale request is answered with 409
and a problem (RFC 9457), a malformed one with 400, and one that has no token where it needs one
with 428 (RFC 6585).

A service that believes the header believes its clients: whoever can send any number can lock all
others out. Authenticate first.
"""

from fencedlock.fencing.http.asgi import ASGIFencing
from fencedlock.fencing.http.clients import TokenHeader, raise_if_stale
from fencedlock.fencing.http.header import HEADER, format_token, parse_token
from fencedlock.fencing.http.wsgi import ENVIRON_KEY, WSGIFencing

__all__ = [
    "ENVIRON_KEY",
    "HEADER",
    "ASGIFencing",
    "TokenHeader",
    "WSGIFencing",
    "format_token",
    "parse_token",
    "raise_if_stale",
]
