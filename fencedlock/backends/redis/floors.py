"""The highest tokens that a client has seen: none is issued below them, whatever the server forgot."""

from __future__ import annotations

_SLACK_US = 1_000_000
"""Our estimate of the server's time is off by at most a request's time."""


class Floors:
    """One floor for all locks, as tokens follow the server's clock; and one for each lock whose tokens were raised above that clock.

    One number takes no memory for each lock; but a lock that :meth:`Client.raise_floor` lifted must not lift the others.
    """

    __slots__ = ("of_all", "of_lifted")

    def __init__(self) -> None:
        self.of_all: int = 0
        self.of_lifted: dict[str, int] = {}

    def saw(self, name: str, token: int, server_us: int) -> None:
        """This token was issued for this lock, at about this time of the server."""
        if token <= server_us + _SLACK_US:
            self.of_all = max(self.of_all, token)
        elif token > self.of_lifted.get(name, 0):
            self.of_lifted[name] = token

    def of(self, name: str) -> int:
        """The floor of this lock."""
        return max(self.of_all, self.of_lifted.get(name, 0))
