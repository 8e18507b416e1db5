"""Says once that the lock server gives no answer, and once that it does again."""

from __future__ import annotations

import logging

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError

logger: logging.Logger = logging.getLogger("fencedlock")


class Outage:
    """Whether the server of one client is away, by what its calls have met."""

    def __init__(self) -> None:
        self.since: float | None = None
        """The local time of the first call without an answer; None while calls are answered."""

    def began(self, error: BackendUnavailableError) -> None:
        """A call had no answer."""
        if self.since is None:
            self.since = now_seconds()
            logger.warning("fencedlock: %s. Locks that are held stay so until their leases end; calls are tried again", error)

    def ended(self) -> None:
        """A call was answered."""
        since, self.since = self.since, None
        if since is not None:
            logger.warning("fencedlock: the lock server answers again, after %.1f s", now_seconds() - since)
