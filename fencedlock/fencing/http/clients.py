"""Hooks for the clients of a fenced service: httpx and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fencedlock.errors import StaleTokenError
from fencedlock.fencing.http.header import HEADER, format_token
from fencedlock.fencing.http.problem import CONTENT_TYPE, STALE_TYPE
from fencedlock.token import FencingToken

if TYPE_CHECKING:
    from fencedlock.primitives.locks import RLock


class TokenHeader:
    """Puts the token of a held lock, or a given token, on each request: for httpx and requests.

    ``httpx.Client(event_hooks={"request": [TokenHeader(lock)]})``, or ``auth=TokenHeader(lock)`` of
    httpx (also of its AsyncClient) and of requests. Without a client's hook: ``headers={HEADER:
    format_token(lock.token)}``. Raises NotOwnedError when the calling thread does not hold the
    lock.
    """

    def __init__(self, lock: RLock | FencingToken) -> None:
        from fencedlock.primitives.locks import RLock

        if not isinstance(lock, RLock | FencingToken):
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
    """Raise StaleTokenError if the service has refused the request's token: for responses of httpx and requests.

    Call it, or hook it: ``event_hooks={"response": [raise_if_stale]}`` of ``httpx.Client`` (of an
    ``AsyncClient`` call it with the response), ``hooks={"response": raise_if_stale}`` of requests.
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
        return  # no problem of ours
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
