"""Every error this library raises, as one tree.

::

    FencedLockError
    ├── NotOwnedError            (also RuntimeError)     this thread does not hold the lock
    ├── LockLostError            (also RuntimeError)     the lease ended before the release
    ├── StaleTokenError                                  a store has seen a newer token
    ├── AcquireCancelledError                            a Cancellation ended the waiting
    ├── ConfigurationError       (also ValueError)       a setting is missing or wrong
    └── BackendError                                     the server refused
        ├── BackendUnavailableError (also ConnectionError)  the server gave no answer └──
        BackendMisconfiguredError                       the server's settings or rights are wrong

Each carries ``lock`` (the name), ``token`` and ``owner`` (the claim's id) where they apply, and can
be pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fencedlock.token import FencingToken


class FencedLockError(Exception):
    """The root of the tree.

    ``lock`` is the lock's name, ``token`` the :class:`~fencedlock.FencingToken` of the hold and
    ``owner`` the id of its claim; each is ``None`` where it does not apply.
    """

    def __init__(
        self,
        message: str,
        *,
        lock: str | None = None,
        token: FencingToken | None = None,
        owner: str | None = None,
    ) -> None:
        super().__init__(message)
        self.lock = lock
        self.token = token
        self.owner = owner

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[FencedLockError], args: tuple[Any, ...], state: dict[str, Any]
) -> FencedLockError:
    """Make the error without its ``__init__``, whose keywords pickle's default would lose."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NotOwnedError(FencedLockError, RuntimeError):
    """The calling thread does not hold the lock, as ``threading.RLock`` says with ``RuntimeError``."""


class LockLostError(FencedLockError, RuntimeError):
    """The lease ended before the holder released it: somebody else may have held the lock meanwhile.

    What the body wrote without a fence check may have met another holder's writes.
    """


class StaleTokenError(FencedLockError):
    """A store refused a token because it has accepted a higher one.

    ``presented`` and ``stored`` are the two token values.
    """

    def __init__(
        self,
        message: str,
        *,
        presented: int,
        stored: int | None,
        lock: str | None = None,
        token: FencingToken | None = None,
        owner: str | None = None,
    ) -> None:
        super().__init__(message, lock=lock, token=token, owner=owner)
        self.presented = presented
        self.stored = stored


class AcquireCancelledError(FencedLockError):
    """A :class:`~fencedlock.Cancellation`, or the closing of the client, ended this acquisition."""


class ConfigurationError(FencedLockError, ValueError):
    """A setting is missing or wrong; the message names the fix."""


class BackendError(FencedLockError):
    """The server answered with an error; the message has its words."""


class BackendUnavailableError(BackendError, ConnectionError):
    """The server gave no answer in time, or can't serve now.

    ``sent`` is False if nothing was sent, so that nothing can have been done. ``asked_at`` is the
    local time at which the call began, None where that is not known.
    """

    sent: bool = True
    asked_at: float | None = None


class BackendMisconfiguredError(BackendError):
    """The server's settings, or the rights of its user, do not permit what a lock needs."""
