"""Tokens over HTTP: a header, middleware that refuses stale requests, and hooks for clients.

The header looks like ``Fencing-Token: "orders/42";1795217931444040``. The middleware answers a
stale request with 409 and a problem (RFC 9457), a malformed one with 400, and one that needs a
token and has none with 428 (RFC 6585).

A service that trusts the header trusts its clients: a client that sends a very high number locks
out all others. Authenticate clients first.
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
