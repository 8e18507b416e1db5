"""What all fences share: for which resource a token is presented, and what is said when it is refused."""

from __future__ import annotations

from fencedlock.errors import ConfigurationError, StaleTokenError
from fencedlock.token import FencingToken

MOST_NAME_BYTES = 2600
"""The longest name that PostgreSQL can index (2704 bytes with its surroundings); MySQL's InnoDB can
take more.
"""

MOST_TOKEN = 2**63 - 1
"""What a BIGINT holds."""


NO_TRANSACTION = (
    "the check was made outside of a transaction, where it protects nothing: {begin}, check the "
    "token first in it, then read and write"
)


def checked_resource(token: FencingToken, resource: str | None) -> str:
    """The resource that the token is presented for: the lock's name, if none is given.

    Raises TypeError for what is no token, and ConfigurationError for what can't be a resource.
    """
    if not isinstance(token, FencingToken):
        raise TypeError(
            "a fence checks the FencingToken that the lock gave, the whole of it ('with lock as "
            f"token:', or lock.token), not {type(token).__name__}: {token!r:.80}"
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
        raise TypeError(f"a {what} is named by a str, not {type(name).__name__}: {name!r:.80}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"a {what}'s name must be encodable as UTF-8, and {name!r} is not: {error.reason}"
        ) from None
    if not 0 < size <= MOST_NAME_BYTES or "\0" in name:
        raise ConfigurationError(
            f"for a store a {what}'s name must have 1 to {MOST_NAME_BYTES} bytes in UTF-8, and no "
            f"NUL: use a digest of {name!r:.80}"
        )


def stale_token(token: FencingToken, resource: str, stored: int | None) -> StaleTokenError:
    """The refusal of a token that is lower than the highest one that the resource has seen."""
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
    """The refusal of a token of another lock: tokens of two locks have no order."""
    error = ConfigurationError(
        f"resource {resource!r} is guarded by lock {lock_name!r}, and this token is of lock "
        f"{token.lock!r}: tokens of two locks have no order. Leave out resource=, or take the same "
        "lock everywhere. (Was the lock renamed? Set lock_name in the resource's row of fences, "
        "while nobody writes)"
    )
    error.lock, error.token = token.lock, token
    return error
