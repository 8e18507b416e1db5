"""What all fences share: the validation of tokens and resources, and the errors of a refusal."""

from __future__ import annotations

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.token import FencingToken

MOST_RESOURCE_BYTES = 2600
"""The most bytes in UTF-8 that the name of a lock or resource may have.

PostgreSQL can index no longer ones: its limit is 2704 bytes with overhead. MySQL's InnoDB can index
longer ones.
"""

MOST_TOKEN = 2**63 - 1
"""The highest value of a token: the highest number that a BIGINT holds."""


NO_TRANSACTION = (
    "the check was made outside of a transaction, where it protects nothing: {begin}, check the "
    "token first in it, then read and write"
)


def checked_resource(token: FencingToken, resource: str | None) -> str:
    """Return the resource that the token is presented for: the lock's name, if none is given.

    Raises TypeError if ``token`` is not a FencingToken, and ConfigurationError if a name can't be
    that of a resource.
    """
    if not isinstance(token, FencingToken):
        raise TypeError(
            "a fence checks the whole FencingToken of a lock ('with lock as token:', or "
            f"lock.token), not {type(token).__name__}: {token!r:.80}"
        )
    _check_value(token.value)
    _check_name("lock", token.lock)
    if resource is not None:
        _check_name("resource", resource)
    return token.lock if resource is None else resource


def _check_value(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKEN:
        raise TypeError(
            f"a token's value must be an int from 0 to {MOST_TOKEN}, not {value!r:.80}: present "
            "the token of a lock"
        )


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"the name of a {what} must be a str, not {type(name).__name__}: {name!r:.80}"
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"a {what}'s name must be encodable as UTF-8, and {name!r} is not: {error.reason}"
        ) from None
    if not 0 < size <= MOST_RESOURCE_BYTES or "\0" in name:
        raise ConfigurationError(
            f"for a store a {what}'s name must have 1 to {MOST_RESOURCE_BYTES} bytes in UTF-8, "
            f"and no NUL: use a digest of {name!r:.80}"
        )


def stale_token(token: FencingToken, resource: str, stored: int | None) -> StaleTokenError:
    """Return the error for a token that is lower than the highest one the resource has seen."""
    seen = "a higher one" if stored is None else str(stored)
    return StaleTokenError(
        f"token {token} of lock {token.lock!r} is stale: resource {resource!r} has seen {seen}, so "
        "somebody else has held the lock since. Roll back, and do not retry with this token: "
        "acquire the lock again. (If tokens that were just acquired are refused too, the lock "
        "server was changed: see Client.raise_floor)",
        presented=int(token),
        stored=stored,
        lock=token.lock,
        token=token,
    )


def other_lock(token: FencingToken, resource: str, lock_name: str) -> ConfigurationError:
    """Return the error for a token of another lock than the resource's.

    Tokens of two locks have no order.
    """
    error = ConfigurationError(
        f"resource {resource!r} is guarded by lock {lock_name!r}, and this token is of lock "
        f"{token.lock!r}: tokens of two locks have no order. Leave out resource=, or take the same "
        "lock everywhere. (Was the lock renamed? Set lock_name in the resource's row of fences, "
        "while nobody writes)"
    )
    error.lock, error.token = token.lock, token
    return error
