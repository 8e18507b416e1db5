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
        """The server's time minus that of this process, in µs, at most. It is 0 before the first
        answer that told the time.
        """
        self.least_ahead_us: float = 0.0
        """The same, at least."""

    def server_us(self, at: float) -> int:
        """Return the server's time in µs at a time of this process."""
        return int(at * 1e6 + self.ahead_us)

    def learn_time(self, server_us: int, asked_at: float) -> None:
        """Learn the server's time from an answer that was just read.

        The server has told its time some time after the question and before now. The answer may be
        old, because the process or the network was stopped. So the bounds that it gives count only
        as far as they are tighter than those before. An answer that contradicts these means that a
        clock was set.
        """
        most, least = server_us - asked_at * 1e6, server_us - now_seconds() * 1e6
        if not self.ahead_us or least > self.ahead_us or most < self.least_ahead_us:
            self.ahead_us, self.least_ahead_us = most, least
            return
        self.ahead_us = min(self.ahead_us, most)
        self.least_ahead_us = max(self.least_ahead_us, least)


def clock_jumps() -> BackendUnavailableError:
    """Return the error for a server that calls each packet late."""
    return BackendUnavailableError(
        f"the lock server's clock jumps: it called {MOST_LATE} packets in a row late"
    )
