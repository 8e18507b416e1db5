"""The highest tokens that a client has seen, from which it derives floors.

The next token of a lock has to be above its floor, whatever the server has forgotten.
"""

from __future__ import annotations

SLACK_US = 1_000_000
"""The tolerance for the estimate of the server's time, which is off by at most a request's time."""

MOST_TOKEN = 2**53
"""The bound of all tokens. Lua counts exactly up to here, and the scripts refuse more."""


class Floors:
    """One floor for all locks, and one for each lock whose tokens are ahead of the server's clock.

    Tokens usually follow the server's clock, so one number is enough and takes no memory for each
    lock. But a lock that :meth:`Client.raise_floor` lifted must not lift the others.

    The floor of a lifted lock is kept as how far its tokens are ahead of this process's clock, so
    that it rises with that clock. Tokens that are issued to others would pass a mere number, and a
    server that forgot them would issue them once more. The floor is not relative to the server's
    clock, because a server that takes over may have another time.
    """

    __slots__ = ("of_all", "of_lifted")

    def __init__(self) -> None:
        self.of_all: int = 0
        self.of_lifted: dict[str, int] = {}
        """How many µs the tokens of each lifted lock are ahead of this process's clock."""

    def saw(self, name: str, token: int, server_us: int, local_us: int) -> None:
        """Record a token of this lock, and about when it was issued.

        The time is given by the clock of the server and by that of this process.
        """
        if token <= server_us + SLACK_US:
            self.of_all = max(self.of_all, token)
        else:
            self.of_lifted[name] = max(self.of_lifted.get(name, 0), token - local_us)

    def of(self, name: str, local_us: int) -> int:
        """Return the floor of this lock at this time of this process."""
        ahead = self.of_lifted.get(name)
        return self.of_all if ahead is None else max(self.of_all, local_us + ahead)
