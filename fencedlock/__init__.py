"""Reentrant, fair, fenced locks for threads, processes and hosts, with the semantics of Python's ``threading`` module."""

from fencedlock.backends.base import LockInfo, Waiter
from fencedlock.client import Client
from fencedlock.connecting import configure, connect
from fencedlock.errors import (
    AcquireCancelledError,
    BackendError,
    BackendMisconfiguredError,
    BackendUnavailableError,
    ConfigurationError,
    FencedLockError,
    LockLostError,
    NotOwnedError,
    StaleTokenError,
)
from fencedlock.locks import FairLock, RLock
from fencedlock.token import FencingToken
from fencedlock.waiting import Cancellation

__version__ = "0.1.0"

__all__ = [
    "AcquireCancelledError",
    "BackendError",
    "BackendMisconfiguredError",
    "BackendUnavailableError",
    "Cancellation",
    "Client",
    "ConfigurationError",
    "FairLock",
    "FencedLockError",
    "FencingToken",
    "LockInfo",
    "LockLostError",
    "NotOwnedError",
    "RLock",
    "StaleTokenError",
    "Waiter",
    "configure",
    "connect",
]
