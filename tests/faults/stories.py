"""Invented histories, told event by event, for the tests of the rules."""

from __future__ import annotations

from typing import Any

from tests.faults.history import FAIL, INVOKE, NOTE, OK, UNKNOWN, Event, History


class Story:
    """Collects events in any order. :meth:`history` puts them in the order of their times."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(
        self, at: float, who: str, phase: str, what: str, lock: str = "fair", /, **data: Any
    ) -> None:
        self.events.append(Event(at, who, phase, what, lock, data))

    def operation(
        self,
        who: str,
        what: str,
        begun: float,
        ended: float,
        given: Any,
        outcome: str = OK,
        got: Any = None,
        lock: str = "fair",
    ) -> None:
        self.tell(begun, who, INVOKE, what, lock, **given)
        if ended != float("inf"):
            self.tell(ended, who, outcome, what, lock, **(got or {}))

    def acquire(
        self,
        who: str,
        begun: float,
        ended: float,
        token: int,
        *,
        deadline: float = 1000.0,
        lock: str = "fair",
        timeout: float | None = None,
    ) -> str:
        claim = f"{who}@{begun}"
        got = {"claim": claim, "token": token, "deadline": deadline, "abandoned": False}
        self.operation(
            who, "acquire", begun, ended, {"timeout": timeout, "fair": True}, OK, got, lock
        )
        return claim

    def release(
        self,
        who: str,
        begun: float,
        ended: float,
        claim: str,
        *,
        deadline: float = 1000.0,
        lost: bool = False,
        lock: str = "fair",
    ) -> None:
        got: dict[str, Any] = {"lost": True} if lost else {"answered": True}
        self.operation(
            who,
            "release",
            begun,
            ended,
            {"claim": claim, "deadline": deadline},
            FAIL if lost else OK,
            got,
            lock,
        )

    def hold(
        self,
        who: str,
        begun: float,
        granted: float,
        ended: float,
        token: int,
        *,
        lock: str = "fair",
        deadline: float = 1000.0,
    ) -> str:
        """Tell of a hold from its acquire to its release."""
        claim = self.acquire(who, begun, granted, token, lock=lock, deadline=deadline)
        self.release(who, ended, ended + 0.1, claim, lock=lock, deadline=deadline)
        return claim

    def inspect(
        self,
        begun: float,
        ended: float,
        *,
        owner: str | None = None,
        lock: str = "fair",
        who: str = "witness/0",
        **said: Any,
    ) -> None:
        got = {"owner": owner, "token": 1, "count": 1, "remaining": 1000.0, "queue": [], **said}
        self.operation(who, "inspect", begun, ended, {}, OK, got, lock)

    def write(
        self,
        who: str,
        begun: float,
        ended: float,
        token: int,
        value: str,
        read: tuple[int, str] | None,
        *,
        store: str = "s",
    ) -> None:
        """Tell of a read-modify-write that was accepted, or whose outcome nobody knows."""
        got = {} if read is None else {"read_version": read[0], "read_value": read[1]}
        given = {"store": store, "token": token, "value": value}
        self.operation(who, "write", begun, ended, given, UNKNOWN if read is None else OK, got)

    def refused(self, who: str, begun: float, ended: float, token: int, stored: int) -> None:
        self.operation(
            who,
            "write",
            begun,
            ended,
            {"store": "s", "token": token, "value": f"{who}{begun}"},
            FAIL,
            {"stored": stored},
        )

    def fault(
        self, name: str, begun: float, healed: float, *targets: str, breaks_exclusion: bool = False
    ) -> None:
        data = {"name": name, "targets": list(targets), "breaks_exclusion": breaks_exclusion}
        self.tell(begun, "run", NOTE, "fault", "", phase="begin", **data)
        self.tell(healed, "run", NOTE, "fault", "", phase="end", **data)

    def history(self) -> History:
        return History(sorted(self.events, key=lambda event: event.at))
