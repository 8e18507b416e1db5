"""The locks of this library for tasks. They are one lock with the blocking ones of their name."""

from fencedlock.asyncio.locks import FairLock, Lock, RLock

__all__ = ["FairLock", "Lock", "RLock"]
