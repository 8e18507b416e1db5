"""The network between one simulated process and the servers."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.world import World

TRIP_SECONDS = (0.00002, 0.0005)
"""The shortest and the longest time of a packet on its way, if nothing is wrong."""


class Link:
    """The network between one process and the server, with the faults that it has now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.delay_seconds: float = 0.0
        self.lost_share: float = 0.0
        """The share of the replies that are lost, and their connections with them."""
        self.late_share: float = 0.0
        self.late_seconds: float = 0.0
        self.is_silent_up: bool = False
        self.is_silent_down: bool = False
        self._held: list[Callable[[], object]] = []
        self.cuts: int = 0
        """The number of times that all connections were cut."""

    def trip(self, action: Callable[[], object], *, up: bool) -> None:
        """Let a packet arrive, some time."""
        if self.is_silent_up if up else self.is_silent_down:
            self._held.append(action)
            return
        rng = self.world.rng
        seconds = rng.uniform(*TRIP_SECONDS)
        if self.delay_seconds:
            seconds += rng.uniform(0, self.delay_seconds)
        if up and rng.random() < self.late_share:
            seconds += rng.uniform(0, self.late_seconds)
        self.world.after(seconds, action)

    def speak(self) -> None:
        """Let what was held back arrive."""
        self.is_silent_up = self.is_silent_down = False
        held, self._held = self._held, []
        for action in held:
            self.world.after(self.world.rng.uniform(*TRIP_SECONDS), action)
