"""The order in which beats are due."""

from __future__ import annotations

from typing import Any


class Schedule(dict[Any, float]):
    """Targets that get a beat every ``delay_seconds``, ordered by due time.

    Maps each target to the local time of its next beat.
    """

    def __init__(self, delay_seconds: float) -> None:
        self.delay_seconds: float = delay_seconds
