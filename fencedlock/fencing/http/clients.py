"""Hooks for the clients of a fenced service: httpx and requests."""

from __future__ import annotations

from typing import Any

from fencedlock.errors import StaleTokenError
from fencedlock.fencing.http.header import HEADER, format_token
from fencedlock.fencing.http.problem import CONTENT_TYPE, STALE_TYPE
from fencedlock.primitives.handle import Handle
from fencedlock.token import FencingToken


class TokenHeader:
    """A hook for httpx and requests that puts a token into the header of each request.

    The token is that of a held lock of any class, also of ``fencedlock.asyncio``, or a given one.
    Use it as ``httpx.Client(event_hooks={"request": [TokenHeader(lock)]})``, or as
    ``auth=TokenHeader(lock)`` with httpx (also with its AsyncClient) and with requests. With a
    client that has no hooks, pass ``headers={HEADER: format_token(lock.token)}``.

    A request raises NotOwnedError if the thread or task that sends it does not hold the lock.
    Making the hook raises TypeError for anything but a lock or a FencingToken.
    """

    def __init__(self, lock: Handle | FencingToken) -> None:
        if not isinstance(lock, Handle | FencingToken):
            raise TypeError(
                f"TokenHeader takes a lock or a FencingToken, not {type(lock).__name__}"
            )
        self._lock = lock

    def __call__(self, request: Any) -> Any:
        """Set the header of a request that is about to be sent."""
        request.headers[HEADER] = format_token(
            self._lock if isinstance(self._lock, FencingToken) else self._lock.token
        )
        return request


def raise_if_stale(response: Any, *_: Any, **__: Any) -> None:
    """Raise StaleTokenError if the service has refused the token of the request.

    Call it with a response of httpx or requests, or use it as a hook:
    ``event_hooks={"response": [raise_if_stale]}`` of ``httpx.Client``, or
    ``hooks={"response": raise_if_stale}`` of requests. It can't be a hook of httpx's
    ``AsyncClient``: call it with the response.
    """
    if response.status_code != 409 or not response.headers.get(
        "Content-Type", ""
    ).lower().startswith(CONTENT_TYPE):
        return
    if hasattr(response, "read"):
        response.read()
    try:
        problem = response.json()
    except ValueError:
        return  # not an answer of this library's middleware
    if not isinstance(problem, dict) or problem.get("type") != STALE_TYPE:
        return
    lock, presented, stored = problem.get("lock"), problem.get("presented"), problem.get("stored")
    if (
        not isinstance(lock, str | None)
        or not isinstance(presented, int)
        or not isinstance(stored, int | None)
    ):
        return
    raise StaleTokenError(
        f"the service refused the token: {problem.get('detail')}",
        presented=presented,
        stored=stored,
        lock=lock,
        token=None if lock is None else FencingToken(lock, presented),
    )
