"""Reentrant, fair, fenced locks that threads, processes and hosts share.

They have the semantics of Python's ``threading`` module.
"""

from fencedlock.client import Client
from fencedlock.connecting import configure, connect
from fencedlock.core.info import LockInfo, Waiter
from fencedlock.errors import (
    AcquireCancelledError,
    AcquireTimeoutError,
    BackendError,
    BackendMisconfiguredError,
    BackendUnavailableError,
    ConfigurationError,
    FencedLockError,
    LockLostError,
    NotOwnedError,
    StaleTokenError,
    WouldDeadlockError,
)
from fencedlock.exclusive import exclusive
from fencedlock.primitives.held import assert_held, requires
from fencedlock.primitives.lock import Lock
from fencedlock.primitives.rlock import FairLock, RLock
from fencedlock.runtime.cancellation import Cancellation
from fencedlock.token import FencingToken

__version__ = "0.1.0"

__all__ = [
    "AcquireCancelledError",
    "AcquireTimeoutError",
    "BackendError",
    "BackendMisconfiguredError",
    "BackendUnavailableError",
    "Cancellation",
    "Client",
    "ConfigurationError",
    "FairLock",
    "FencedLockError",
    "FencingToken",
    "Lock",
    "LockInfo",
    "LockLostError",
    "NotOwnedError",
    "RLock",
    "StaleTokenError",
    "Waiter",
    "WouldDeadlockError",
    "assert_held",
    "configure",
    "connect",
    "exclusive",
    "requires",
]
