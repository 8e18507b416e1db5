"""The log messages that the lock server does not answer, and that it answers again."""

from __future__ import annotations

import logging

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError

logger: logging.Logger = logging.getLogger("fencedlock")


class Outage:
    """The record of whether the server of one client answers.

    The beginning and the end of an outage are each logged once.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        """The local time of the first call that had no answer. None while calls are answered."""

    def began(self, error: BackendUnavailableError) -> None:
        """Record that a call had no answer."""
        if self.since is None:
            self.since = now_seconds()
            logger.warning(
                "fencedlock: %s. Locks that are held stay so until their leases end; calls are "
                "tried again",
                error,
            )

    def ended(self) -> None:
        """Record that a call was answered."""
        since, self.since = self.since, None
        if since is not None:
            logger.warning(
                "fencedlock: the lock server answers again, after %.1f s", now_seconds() - since
            )
