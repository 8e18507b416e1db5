"""Middleware for WSGI services."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.fencing.http.header import HEADER
from fencedlock.fencing.http.middleware import Middleware
from fencedlock.fencing.http.problem import (
    CONTENT_TYPE,
    RefusedError,
    bad_request,
    problem_of,
    token_of,
)

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

ENVIRON_KEY = "fencedlock.token"
"""The key of ``environ`` under which a WSGI service finds the FencingToken."""

_MOST_DIGITS = 18
"""The most digits of a body's length. Such numbers fit into the type of Python's sizes."""

_LENGTH = re.compile(rf"[0-9]{{1,{_MOST_DIGITS}}}")

_ENVIRON_HEADER = "HTTP_" + HEADER.upper().replace("-", "_")


class WSGIFencing(Middleware[WSGIApp, Mapping[str, Any]]):
    """Middleware that refuses the stale requests of a WSGI service.

    It works like :class:`ASGIFencing`, and takes the same arguments. The token is in
    ``environ["fencedlock.token"]``, and ``resource`` is a function that returns the resource of an
    ``environ``. The answer to a request with a token is collected before it is sent, so that no
    part of the service, such as a generator of the answer, runs after its check has ended. Requests
    without a token pass unchanged.
    """

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Handle one request as PEP 3333 says."""
        values = [environ[_ENVIRON_HEADER]] if _ENVIRON_HEADER in environ else []
        try:
            token = token_of(values, environ["REQUEST_METHOD"], self._methods)
            if token is None:
                return self._app(environ, start_response)
            environ[ENVIRON_KEY] = token
            if self._fence is None:
                return self._collect(environ, start_response)
            resource = self._resource(environ) if self._resource else None
            length = _body_length(environ)
            self._fence.check(token, resource)
            # The body is read before the request's turn, so that a stalled upload, perhaps of an
            # older holder, does not delay others.
            _read_body(environ, length)
            with self._fence.guard(token, resource):
                return self._collect(environ, start_response)
        except (RefusedError, StaleTokenError, ConfigurationError) as error:
            problem = problem_of(error)
            if problem is None:
                raise
        start_response(
            f"{problem.status} {problem.phrase}",
            [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(problem.body)))],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [problem.body]

    def _collect(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Run the service, and return its whole answer.

        The server's ``start_response`` is called only at the end, when nothing can be refused any
        more.
        """
        begun: tuple[Any, ...] | None = None
        parts: list[bytes] = []

        def note(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], None]:
            nonlocal begun
            if begun is not None and exc_info is None:
                raise AssertionError("the service called start_response twice without exc_info")
            begun = (status, headers)
            return parts.append

        answer = self._app(environ, note)
        try:
            parts.extend(answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        if begun is None:
            raise AssertionError("the service did not call start_response")
        start_response(*begun)
        return parts


def _body_length(environ: Mapping[str, Any]) -> int | None:
    """Return how many bytes the body has; None if it has to be read up to its end.

    Raises RefusedError (400) if the Content-Length header is no valid length.
    """
    text = environ.get("CONTENT_LENGTH") or ""
    if not text:
        return None if environ.get("wsgi.input_terminated") else 0
    if not _LENGTH.fullmatch(text):
        raise bad_request(
            f"a Content-Length header has a number of bytes, from 0 to {10**_MOST_DIGITS - 1}, not "
            f"{text!r:.80}"
        )
    return int(text)


def _read_body(environ: dict[str, Any], length: int | None) -> None:
    """Read the whole body into memory, and let the service read it from there.

    Raises RefusedError (400) if the body ends too soon.
    """
    if length == 0:
        return
    source = environ["wsgi.input"]
    if length is None:
        body = source.read(-1)
    else:
        parts, left = [], length
        while left and (part := source.read(left)):
            parts.append(part)
            left -= len(part)
        if left:
            raise bad_request(
                f"the body ended {left} bytes before the {length} of its Content-Length header"
            )
        body = b"".join(parts)
    environ["wsgi.input"] = io.BytesIO(body)
