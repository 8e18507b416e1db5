"""The server's clock, as a client knows it from the server's answers.

Packets carry the server's time at which they are too late, so that no delayed packet takes effect.
"""

from __future__ import annotations

from fencedlock.errors import BackendUnavailableError

MOST_LATE = 3
"""The number of times that a question is sent if the server calls each packet late."""


class ServerTime:
    """The time of one server."""

    def __init__(self) -> None:
        self.ahead_us: float = 0.0
        """The server's time minus that of this process, in µs, as of the last answer that told it.
        It is 0 before the first one.
        """

    def server_us(self, at: float) -> int:
        """Return the server's time in µs at a time of this process."""
        return int(at * 1e6 + self.ahead_us)

    def learn_time(self, server_us: bytes, asked_at: float) -> None:
        """Learn the server's time from an answer. The next "not after" is computed from it."""
        self.ahead_us = int(server_us) - asked_at * 1e6


def clock_jumps() -> BackendUnavailableError:
    """Return the error for a server that calls each packet late."""
    return BackendUnavailableError(
        f"the lock server's clock jumps: it called {MOST_LATE} packets in a row late"
    )
