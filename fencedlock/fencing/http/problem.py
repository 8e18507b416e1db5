"""What a request is refused with: a status and a problem of RFC 9457."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.fencing.http.header import HEADER, parse_token
from fencedlock.token import FencingToken

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Those that change nothing (RFC 9110)."""

CONTENT_TYPE = "application/problem+json"

STALE_TYPE = "urn:fencedlock:stale-token"
"""The ``type`` of the problem that a stale request is answered with."""


class Problem(NamedTuple):
    """An answer."""

    status: int
    phrase: str
    body: bytes


class RefusedError(Exception):
    """This request is answered with a problem."""

    def __init__(self, status: int, phrase: str, detail: str) -> None:
        super().__init__(detail)
        self.problem: Problem = _problem(
            status,
            phrase,
            {"type": "about:blank", "title": phrase, "status": status, "detail": detail},
        )


def bad_request(detail: str) -> RefusedError:
    """The refusal of a request that can't be read."""
    return RefusedError(400, "Bad Request", detail)


def token_of(
    values: list[str], method: str, methods: Collection[str] | None
) -> FencingToken | None:
    """The token of a request with these headers.

    Raises RefusedError: 428 if one is needed and there is none, 400 for a bad one.

    ``methods``, in upper case, are those that need one. The case of ``method`` makes no difference,
    as it makes none to many a service.
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
    """The answer when a token was refused: 409 if it is stale, 400 if it is of another lock than the resource's; None for other errors."""
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
