"""The highest tokens that a client has seen: none is issued below them, whatever the server forgot."""

from __future__ import annotations

SLACK_US = 1_000_000
"""Our estimate of the server's time is off by at most a request's time."""

MOST_TOKEN = 2**53
"""Lua counts exactly up to here: the scripts refuse more."""


class Floors:
    """One floor for all locks, as tokens follow the server's clock; and one for each lock whose tokens were raised above that clock.

    One number takes no memory for each lock; but a lock that :meth:`Client.raise_floor` lifted must
    not lift the others. Its floor is kept as how far its tokens are ahead of this process's clock,
    and goes on with that clock: as a mere number it would be passed by tokens that were issued to
    others, which a server that forgot them would issue once more. The server's own clock is not
    what it is reckoned by, because a server that takes over may have another time.
    """

    __slots__ = ("of_all", "of_lifted")

    def __init__(self) -> None:
        self.of_all: int = 0
        self.of_lifted: dict[str, int] = {}
        """How many µs the tokens of a lock are ahead of this process's clock."""

    def saw(self, name: str, token: int, server_us: int, local_us: int) -> None:
        """This token was issued for this lock, at about this time of the server and of this process."""
        if token <= server_us + SLACK_US:
            self.of_all = max(self.of_all, token)
        else:
            self.of_lifted[name] = max(self.of_lifted.get(name, 0), token - local_us)

    def of(self, name: str, local_us: int) -> int:
        """The floor of this lock, at this time of this process."""
        ahead = self.of_lifted.get(name)
        return self.of_all if ahead is None else max(self.of_all, local_us + ahead)
