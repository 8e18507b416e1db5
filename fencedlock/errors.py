"""All errors that this library raises.

::

    FencedLockError
    ├── NotOwnedError            (also RuntimeError)     this thread does not hold the lock
    ├── LockLostError            (also RuntimeError)     the lease ended before the release
    ├── StaleTokenError                                  a store has seen a newer token
    ├── AcquireCancelledError                            a Cancellation ended the acquisition
    ├── AcquireTimeoutError      (also TimeoutError)     the lock was not free in time
    ├── WouldDeadlockError       (also RuntimeError)     it would wait for its own thread
    ├── ConfigurationError       (also ValueError)       a setting is missing or wrong
    └── BackendError                                     the server refused
        ├── BackendUnavailableError (also ConnectionError)  the server gave no answer
        └── BackendMisconfiguredError                    the server's settings or rights are wrong

Every error has the attributes ``lock`` (the lock's name), ``token`` and ``owner`` (the claim's id),
which are None where they do not apply. Every error can be pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fencedlock.token import FencingToken


class FencedLockError(Exception):
    """The base class of all errors that this library raises.

    ``lock`` is the lock's name, ``token`` the :class:`~fencedlock.FencingToken` of the hold, and
    ``owner`` the id of the claim. Each is None where it does not apply.
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
    """Make an unpickled error without its ``__init__``: pickle would lose the keyword arguments."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NotOwnedError(FencedLockError, RuntimeError):
    """The calling thread does not hold the lock.

    It is a ``RuntimeError`` because ``threading.RLock`` raises that in this case.
    """


class LockLostError(FencedLockError, RuntimeError):
    """The lease ended before the holder released the lock.

    Somebody else may have held the lock meanwhile. What the holder has written without checking its
    token at a fence may conflict with the writes of the other one.
    """


class StaleTokenError(FencedLockError):
    """A store refused a token because it has accepted a higher one, or its hold has ended.

    ``presented`` is the value of the refused token. ``stored`` is that of the higher token, or None
    if it is not known. The end of a hold is the reason only with an ``EtcdFence``: there ``stored``
    is the value of the token with which the lock is held now, or None if nobody holds it.
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
    """A :class:`~fencedlock.Cancellation`, or closing the client, ended this acquisition."""


class AcquireTimeoutError(FencedLockError, TimeoutError):
    """The lock was not free in time.

    :meth:`RLock.within` and :func:`exclusive` raise it, where ``acquire`` returns False.
    """


class WouldDeadlockError(FencedLockError, RuntimeError):
    """The caller would wait for a lock that its own thread holds, so nobody could ever release it.

    The holder is another task of the event loop that runs in this thread, or this thread itself by
    another client of the same server.
    """


class ConfigurationError(FencedLockError, ValueError):
    """A setting is missing or wrong; the message says how to correct it."""


class BackendError(FencedLockError):
    """The server answered with an error; the message quotes it."""


class BackendUnavailableError(BackendError, ConnectionError):
    """The server gave no answer in time, or can't serve requests now.

    ``sent`` is False if nothing was sent to the server, so that the call can't have had any effect.
    ``asked_at`` is the local time, in seconds of this library's clock, at which the call began, or
    None if it is not known.
    """

    sent: bool = True
    asked_at: float | None = None


class BackendMisconfiguredError(BackendError):
    """The server's settings, or the rights of its user, do not permit what a lock needs."""
