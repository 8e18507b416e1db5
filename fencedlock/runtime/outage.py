"""Tells an observer once that the lock server does not answer, and once that it answers again."""

from __future__ import annotations

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError
from fencedlock.runtime.observer import Observer


class Outage:
    """Knows from the calls of one client whether its server answers."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.since: float | None = None
        """The local time of the first call that had no answer. None while calls are answered."""

    def began(self, error: BackendUnavailableError) -> None:
        """Record that a call had no answer."""
        if self.since is None:
            self.since = now_seconds()
            self._observer.outage_began(error)

    def ended(self) -> None:
        """Record that a call was answered."""
        since, self.since = self.since, None
        if since is not None:
            self._observer.outage_ended(now_seconds() - since)
