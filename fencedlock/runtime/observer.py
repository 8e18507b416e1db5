"""What an observer of a client is told, and the observer that writes it to the log."""

from __future__ import annotations

import logging
from typing import Protocol

from fencedlock.core.claims import Claim, Hold
from fencedlock.core.info import LockInfo
from fencedlock.core.waiting import SLOW_SECONDS
from fencedlock.errors import BackendUnavailableError, FencedLockError

logger: logging.Logger = logging.getLogger("fencedlock")


class Observer(Protocol):
    """Is told what happens to the locks of one client.

    Any thread may call it, and waits for it.
    """

    def outage_began(self, error: BackendUnavailableError) -> None:
        """The lock server does not answer any more."""

    def outage_ended(self, seconds: float) -> None:
        """The lock server answers again, after this time."""

    def server_warned(self, warning: str) -> None:
        """A setting of the lock server endangers locks."""

    def waits_long(self, claim: Claim, info: LockInfo | FencedLockError) -> None:
        """A claim has waited for 10 s. ``info`` is about the lock, or says why nothing is known."""

    def beat_failed(self, hold: Hold, error: Exception) -> None:
        """The server refused a beat, and the lease has not ended."""

    def lost(self, hold: Hold) -> None:
        """A lease has ended without a release. The reason is in the hold."""

    def release_unanswered(self, hold: Hold, error: FencedLockError) -> None:
        """A release had no answer and is repeated in the background."""

    def left_to_its_lease(self, hold: Hold, error: FencedLockError) -> None:
        """A hold could not be released when its client was closed."""

    def collected(self, hold: Hold) -> None:
        """The last handle of a held lock was collected, so the lock is released."""


class Log:
    """The observer that writes to the logger ``fencedlock``."""

    def outage_began(self, error: BackendUnavailableError) -> None:
        logger.warning(
            "fencedlock: %s. Locks that are held stay so until their leases end; calls are tried "
            "again",
            error,
        )

    def outage_ended(self, seconds: float) -> None:
        logger.warning("fencedlock: the lock server answers again, after %.1f s", seconds)

    def server_warned(self, warning: str) -> None:
        logger.warning("fencedlock: the lock server endangers locks: %s", warning)

    def waits_long(self, claim: Claim, info: LockInfo | FencedLockError) -> None:
        if isinstance(info, FencedLockError):
            logger.warning(
                "fencedlock: %s (host/process/thread) waits for lock %r for %.0f s so far, and the "
                "server does not say who holds it: %s",
                claim.owner.holder,
                claim.bound.name,
                SLOW_SECONDS,
                info,
            )
            return
        logger.warning(
            "fencedlock: %s (host/process/thread) waits for lock %r for %.0f s so far; it is held "
            "by %s, token %s, and %d wait",
            claim.owner.holder,
            claim.bound.name,
            SLOW_SECONDS,
            info.holder or "nobody just now",
            info.token,
            len(info.waiters),
        )

    def beat_failed(self, hold: Hold, error: Exception) -> None:
        logger.warning(
            "fencedlock: a beat for lock %r failed; trying again until its lease ends: %s",
            hold.bound.name,
            error,
        )

    def lost(self, hold: Hold) -> None:
        logger.warning("fencedlock: lock %r was lost: %s", hold.bound.name, hold.reason)

    def release_unanswered(self, hold: Hold, error: FencedLockError) -> None:
        logger.warning(
            "fencedlock: the release of lock %r had no answer; trying again until its lease "
            "ends: %s",
            hold.bound.name,
            error,
        )

    def left_to_its_lease(self, hold: Hold, error: FencedLockError) -> None:
        logger.warning(
            "fencedlock: lock %r was not released, and its lease runs out: %s",
            hold.bound.name,
            error,
        )

    def collected(self, hold: Hold) -> None:
        logger.warning(
            "fencedlock: the last handle of held lock %r was collected; it is released",
            hold.bound.name,
        )
