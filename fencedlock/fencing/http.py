"""Tokens between services: a header, middleware that refuses stale requests, and hooks for clients.

The header is ``Fencing-Token: "orders/42";1795217931444040``: the lock's name, percent-encoded where it is not plain ASCII,
and the decimal token. A stale request is answered with 409 and a problem (RFC 9457), a malformed one with 400, and one that
has no token where it needs one with 428 (RFC 6585).

A service that believes the header believes its clients: whoever can send any number can lock all others out. Authenticate first.
"""

from __future__ import annotations

import asyncio
import json
import re
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.fencing.base import checked_resource
from fencedlock.fencing.memory import MonotonicFence
from fencedlock.token import FencingToken

if TYPE_CHECKING:
    from fencedlock.locks import RLock

HEADER = "Fencing-Token"

UNSAFE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Those that change something (RFC 9110)."""

STALE_TYPE = "urn:fencedlock:stale-token"
"""The ``type`` of the problem that a stale request is answered with."""

ENVIRON_KEY = "fencedlock.token"
"""Where a WSGI service finds the FencingToken; an ASGI service finds it in ``scope["state"]["fencing_token"]``."""

_PLAIN = " !#$&'()*+,/:;<=>?@[]^`{|}"
_WRITTEN = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]+)"[ \t]*;[ \t]*([0-9]{1,19})')

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Problem = tuple[int, str, bytes]
"""The status, its phrase, and the body."""


def format_token(token: FencingToken) -> str:
    """The header's value for this token."""
    checked_resource(token, None)
    return f'"{quote(token.lock, safe=_PLAIN)}";{token}'


def parse_token(value: str) -> FencingToken:
    """The token of a header's value. Raises ValueError for anything else than one token."""
    found = _WRITTEN.fullmatch(value.strip())
    try:
        token = FencingToken(unquote(found[1], errors="strict"), int(found[2])) if found else None
        if token is not None:
            checked_resource(token, None)
            return token
    except (TypeError, ValueError):
        pass
    raise ValueError(f'a {HEADER} header looks like "orders/42";1795217931444040, not {value!r:.200}')


class ASGIFencing:
    """Middleware that refuses the stale requests of an ASGI service.

    Without a ``fence`` it reads the header and puts the :class:`~fencedlock.FencingToken` into
    ``scope["state"]["fencing_token"]``, for the service to check it in the transaction of its own database; a
    :class:`~fencedlock.StaleTokenError` that the service raises is answered with 409. That is right for every service with
    more than one process.

    With a :class:`~fencedlock.fencing.memory.MonotonicFence`, for a service of one process that keeps its own state, it
    checks the token, and handles requests of one resource one after another, so that no check is overtaken before its
    request is done.

    ``methods`` are those that need a token; a token that comes with another one is checked as well. ``resource`` names the resource of a
    ``scope``; without it the resource is the lock's name.
    """

    def __init__(
        self,
        app: ASGIApp,
        fence: MonotonicFence | None = None,
        *,
        methods: Collection[str] = UNSAFE_METHODS,
        resource: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self._app = app
        self._fence = fence
        self._methods = frozenset(methods)
        self._resource = resource
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = HEADER.lower().encode()
        values = [value.decode("latin-1") for header, value in scope["headers"] if header.lower() == name]
        started = False

        async def noting_send(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            token = _token_of(values, needed=scope["method"] in self._methods)
            if token is not None:
                scope.setdefault("state", {})["fencing_token"] = token
            await self._handle(scope, receive, noting_send, token)
        except _Refused as refused:
            await _send_problem(send, refused.problem)
        except StaleTokenError as error:
            if started:
                raise
            await _send_problem(send, _stale_problem(error))

    async def _handle(self, scope: Scope, receive: Receive, send: Send, token: FencingToken | None) -> None:
        if token is None or self._fence is None:
            await self._app(scope, receive, send)
            return
        resource = self._resource(scope) if self._resource else None
        turn = self._turns.setdefault(token.lock if resource is None else resource, asyncio.Lock())
        async with turn:
            _check(self._fence, token, resource)
            await self._app(scope, receive, send)


class WSGIFencing:
    """Middleware that refuses the stale requests of a WSGI service: as :class:`ASGIFencing`.

    The token is ``environ["fencedlock.token"]``; ``resource`` names the resource of an ``environ``. The answer to a request with a token is
    collected before it is sent, so that nothing of the service runs after its check.
    """

    def __init__(
        self,
        app: WSGIApp,
        fence: MonotonicFence | None = None,
        *,
        methods: Collection[str] = UNSAFE_METHODS,
        resource: Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        self._app = app
        self._fence = fence
        self._methods = frozenset(methods)
        self._resource = resource

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request, as PEP 3333 says."""
        value = environ.get("HTTP_" + HEADER.upper().replace("-", "_"))
        try:
            token = _token_of([] if value is None else [value], needed=environ["REQUEST_METHOD"] in self._methods)
            if token is None:
                return self._app(environ, start_response)
            environ[ENVIRON_KEY] = token
            if self._fence is None:
                return self._collect(environ, start_response)
            resource = self._resource(environ) if self._resource else None
            _check(self._fence, token, resource)
            with self._fence.guard(token, resource):
                return self._collect(environ, start_response)
        except _Refused as refused:
            status, phrase, body = refused.problem
        except StaleTokenError as error:
            status, phrase, body = _stale_problem(error)
        start_response(f"{status} {phrase}", [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))])
        return [body]

    def _collect(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """The whole answer; the service's start_response is called only when there is nothing left to refuse."""
        begun: list[tuple[Any, ...]] = []
        parts: list[bytes] = []

        def note(*arguments: Any) -> Callable[[bytes], None]:
            begun[:] = [arguments]
            return parts.append

        answer = self._app(environ, note)
        try:
            parts.extend(answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        start_response(*begun[0])
        return parts


class TokenHeader:
    """Puts the token of a held lock on each request: for httpx and requests.

    ``httpx.Client(event_hooks={"request": [TokenHeader(lock)]})``, or ``auth=TokenHeader(lock)`` of httpx (also of its
    AsyncClient) and of requests. Without a client's hook: ``headers={HEADER: format_token(lock.token)}``. Raises
    NotOwnedError when the calling thread does not hold the lock.
    """

    def __init__(self, lock: RLock) -> None:
        self._lock = lock

    def __call__(self, request: Any) -> Any:
        """Set the header of a request that is about to be sent."""
        request.headers[HEADER] = format_token(self._lock.token)
        return request


def raise_if_stale(response: Any, *_: Any, **__: Any) -> None:
    """Raise StaleTokenError if the service has refused the request's token: for responses of httpx and requests.

    Call it, or hook it: ``event_hooks={"response": [raise_if_stale]}`` of ``httpx.Client``, ``hooks={"response":
    raise_if_stale}`` of requests.
    """
    if response.status_code != 409 or not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return
    if hasattr(response, "read"):
        response.read()
    problem = response.json()
    if isinstance(problem, dict) and problem.get("type") == STALE_TYPE:
        lock, presented = problem["lock"], problem["presented"]
        raise StaleTokenError(
            f"the service refused the token: {problem['detail']}",
            presented=presented,
            stored=problem["stored"],
            lock=lock,
            token=FencingToken(lock, presented),
        )


class _Refused(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status: int, phrase: str, detail: str) -> None:
        super().__init__(detail)
        self.problem: Problem = (status, phrase, _body({"type": "about:blank", "title": phrase, "status": status, "detail": detail}))


def _token_of(values: list[str], *, needed: bool) -> FencingToken | None:
    if not values:
        if needed:
            raise _Refused(428, "Precondition Required", f"this request needs a {HEADER} header: acquire the lock, and send its token")
        return None
    try:
        if len(values) == 1:
            return parse_token(values[0])
        raise ValueError(f"there must be one {HEADER} header, not {len(values)}")
    except ValueError as error:
        raise _Refused(400, "Bad Request", str(error)) from error


def _check(fence: MonotonicFence, token: FencingToken, resource: str | None) -> None:
    try:
        fence.check(token, resource)
    except ConfigurationError as error:
        raise _Refused(400, "Bad Request", str(error)) from error


def _stale_problem(error: StaleTokenError) -> Problem:
    problem = {
        "type": STALE_TYPE,
        "title": "Stale fencing token",
        "status": 409,
        "detail": str(error),
        "lock": error.lock,
        "presented": error.presented,
        "stored": error.stored,
    }
    return 409, "Conflict", _body(problem)


def _body(problem: dict[str, Any]) -> bytes:
    return json.dumps(problem).encode()


async def _send_problem(send: Send, problem: Problem) -> None:
    status, _, body = problem
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
