"""Middleware for ASGI services."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.fencing.http.header import HEADER
from fencedlock.fencing.http.middleware import Middleware
from fencedlock.fencing.http.problem import (
    CONTENT_TYPE,
    Problem,
    RefusedError,
    problem_of,
    token_of,
)
from fencedlock.fencing.memory import MonotonicFence
from fencedlock.token import FencingToken

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_turns: weakref.WeakKeyDictionary[
    MonotonicFence, weakref.WeakValueDictionary[str, asyncio.Lock]
] = weakref.WeakKeyDictionary()
"""The locks under which the requests of a resource are handled, by fence and resource.

Several middlewares may share one fence.
"""


class ASGIFencing(Middleware[ASGIApp, Scope]):
    """Middleware that refuses the stale requests of an ASGI service.

    Without a ``fence`` it reads the header and puts the :class:`~fencedlock.FencingToken` into
    ``scope["state"]["fencing_token"]``. The service checks it in the transaction of its own
    database. If the service raises :class:`~fencedlock.StaleTokenError`, the middleware answers
    with 409. This is the right way for every service with more than one process.

    A :class:`~fencedlock.fencing.memory.MonotonicFence` is for a service of one process that keeps
    its own state. The middleware checks the token when a request comes, and reads its body. It
    handles the requests of one resource one after another, and checks the token of each again
    before it is handled. So no request with a newer token is handled between the check of a request
    and the end of its handler. Work that a handler leaves running after its end is not covered, for
    example a thread that goes on after the request was cancelled. A handler must not send a request
    for the same resource to its own service, because it would wait for itself.

    ``methods`` are the methods that need a token, in upper or lower case. By default these are all
    but GET, HEAD, OPTIONS and TRACE. A token that comes with another method is checked too.
    ``resource`` is a function that returns the resource of a ``scope``. Without it, or if it
    returns None, the resource is the lock's name. It needs a ``fence``. Only HTTP requests are
    checked: websockets pass unchecked.

    Raises ConfigurationError if ``methods`` are not names, or for a ``resource`` without a
    ``fence``.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection as the ASGI specification says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = HEADER.lower().encode()
        values = [
            value.decode("latin-1") for header, value in scope["headers"] if header.lower() == name
        ]
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            token = token_of(values, scope["method"], self._methods)
            if token is not None:
                scope.setdefault("state", {})["fencing_token"] = token
            if token is None or self._fence is None:
                await self._app(scope, receive, noting_send)
            else:
                await self._handle_in_turn(scope, receive, noting_send, token, self._fence)
        except (RefusedError, StaleTokenError, ConfigurationError) as error:
            problem = problem_of(error)
            if started or problem is None:
                raise
            await _send_problem(scope, send, problem)

    async def _handle_in_turn(
        self, scope: Scope, receive: Receive, send: Send, token: FencingToken, fence: MonotonicFence
    ) -> None:
        resource = self._resource(scope) if self._resource else None
        fence.check(token, resource)
        # The body is read before the request's turn, so that a stalled upload, perhaps of an older
        # holder, does not delay others.
        body = await _whole_body(receive)
        if body is None:
            return  # the client has gone
        turns = _turns.setdefault(fence, weakref.WeakValueDictionary())
        turn = turns.setdefault(token.lock if resource is None else resource, asyncio.Lock())
        async with turn:
            fence.check(token, resource)
            await self._app(scope, _replaying(body, receive), send)


async def _whole_body(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _send_problem(scope: Scope, send: Send, problem: Problem) -> None:
    headers = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(problem.body)).encode()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send(
        {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else problem.body}
    )
