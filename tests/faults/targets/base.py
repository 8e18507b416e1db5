"""What a run needs to know of a lock server.

A file beside this one for each kind starts, breaks and heals its servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.faults.nemeses import Nemesis
from tests.faults.rules import Bounds


class Target(Protocol):
    """Lock servers of one kind, that belong to one run."""

    kind: str
    folder: Path
    """What belongs to the run."""
    lease_seconds: float
    socket_timeout_seconds: float
    bounds: Bounds

    @property
    def members(self) -> Sequence[Any]:
        """The servers' processes: each can be killed, frozen, thawed and started again with its
        data.
        """

    @property
    def nemeses(self) -> tuple[Nemesis, ...]:
        """All that these servers can suffer: those that any can, and more."""

    def followers(self) -> Sequence[Any]:
        """The members that don't lead the others."""

    def start(self) -> None:
        """Start all servers; skips, with the reason, where there are none of this kind."""

    def stop(self) -> None: ...

    def ports(self) -> list[int]:
        """Where clients connect, in an order that does not change."""

    def url(self, endpoints: Sequence[str]) -> str:
        """The target of ``fencedlock.connect``, if the ports are reached at these endpoints."""

    def why_not(self, nemesis: str, /) -> str | None:
        """Why these servers can't suffer from it here; None if they can."""

    def leftovers(self, name: str) -> set[str]:
        """What the servers keep of a lock that nobody holds or waits for, and should not."""
