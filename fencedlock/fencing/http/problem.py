"""The answers to refused requests: a status and a problem of RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.fencing.http.header import HEADER, parse_token
from fencedlock.token import FencingToken

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The methods that change nothing (RFC 9110)."""

CONTENT_TYPE = "application/problem+json"

STALE_TYPE = "urn:fencedlock:stale-token"
"""The ``type`` of the problem in the answer to a stale request."""


class Problem(NamedTuple):
    """The answer to a refused request."""

    status: int
    phrase: str
    body: bytes


class RefusedError(Exception):
    """A request is refused, and ``problem`` is the answer."""

    def __init__(self, status: int, phrase: str, detail: str) -> None:
        super().__init__(detail)
        self.problem: Problem = _problem(
            status,
            phrase,
            {"type": "about:blank", "title": phrase, "status": status, "detail": detail},
        )


def bad_request(detail: str) -> RefusedError:
    """Return the refusal (400) of a request that can't be read."""
    return RefusedError(400, "Bad Request", detail)


def token_of(
    values: list[str], method: str, methods: Collection[str] | None
) -> FencingToken | None:
    """Return the token of a request with these values of the header; None if there is none.

    ``methods`` are the methods that need a token, in upper case. The case of ``method`` does not
    matter, because many services ignore it too.

    Raises RefusedError: 428 if a token is needed and missing, 400 if it can't be read or there are
    several.
    """
    if not values:
        name = method.upper()
        if name not in SAFE_METHODS if methods is None else name in methods:
            raise RefusedError(
                428,
                "Precondition Required",
                f"this request needs a {HEADER} header: acquire the lock, and send its token",
            )
        return None
    try:
        if len(values) == 1:
            return parse_token(values[0])
        raise ValueError(f"there must be one {HEADER} header, not {len(values)}")
    except ValueError as error:
        raise bad_request(str(error)) from error


def problem_of(error: RefusedError | StaleTokenError | ConfigurationError) -> Problem | None:
    """Return the answer to a request that ended with this error; None if it is not about a token.

    It is 409 if the token is stale, and 400 if it is of another lock than the resource's.
    """
    if isinstance(error, RefusedError):
        return error.problem
    if isinstance(error, ConfigurationError):
        return None if error.token is None else bad_request(str(error)).problem
    return _problem(
        409,
        "Conflict",
        {
            "type": STALE_TYPE,
            "title": "Stale fencing token",
            "status": 409,
            "detail": str(error),
            "lock": error.lock,
            "presented": error.presented,
            "stored": error.stored,
        },
    )


def _problem(status: int, phrase: str, content: dict[str, Any]) -> Problem:
    return Problem(status, phrase, json.dumps(content).encode())
