"""The server's clock, as a client knows it from the server's answers.

Packets carry the server's time at which they are too late, so that no delayed packet takes effect.
"""

from __future__ import annotations

from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError

MOST_LATE = 3
"""The number of times that a question is sent if the server calls each packet late."""


class ServerTime:
    """The time of one server."""

    def __init__(self) -> None:
        self.ahead_us: float = 0.0
        """The server's time minus that of this process, in µs, as far as the answers tell. The
        server's time may be later by what an answer took. It is 0 before the first answer.
        """

    def server_us(self, at: float) -> int:
        """Return the server's time in µs at a time of this process."""
        return int(at * 1e6 + self.ahead_us)

    def learn_time(self, server_us: int) -> None:
        """Learn the server's time from an answer that was just read.

        The answer may be old, because the process or the network was stopped, so the server's time
        is this one or later. An estimate from the time of the question could be far too high: a
        process that was stopped for seconds would put tokens so far ahead of the server's clock.
        """
        self.ahead_us = server_us - now_seconds() * 1e6


def clock_jumps() -> BackendUnavailableError:
    """Return the error for a server that calls each packet late."""
    return BackendUnavailableError(
        f"the lock server's clock jumps: it called {MOST_LATE} packets in a row late"
    )
