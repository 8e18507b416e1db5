"""The history of a run. Each process writes a line for each event that it sees, with the time by
the clock that all processes of this host share.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fencedlock.clock import now_seconds

INVOKE, OK, FAIL, UNKNOWN, NOTE = "invoke", "ok", "fail", "unknown", "note"
"""The phases of events. An operation is invoked. Then it is done (ok), or not done (fail), or
nobody knows (unknown). A note is not an operation.
"""


class Event(NamedTuple):
    at: float
    """The time by :func:`now_seconds`. All processes of this host read the same clock, and nobody
    sets it.
    """
    who: str
    """The name of the thread. "p3.2/1" is thread 1 of the second process in slot 3. A forked child
    of that process is "p3.2.1".
    """
    phase: str
    what: str
    lock: str
    data: dict[str, Any]


class Recorder:
    """Writes the events of one process. Each event is handed to the operating system at once, so
    SIGKILL loses none.
    """

    def __init__(self, folder: Path, process: str) -> None:
        self._file = os.open(
            folder / f"{process.replace('/', '-')}.jsonl",
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC,
            0o644,
        )

    def write(self, who: str, phase: str, what: str, lock: str = "", /, **data: Any) -> None:
        line = json.dumps([now_seconds(), who, phase, what, lock, data], default=str) + "\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        os.close(self._file)


def load(folder: Path) -> list[Event]:
    """Return all events of a run, in the order of their times."""
    events = []
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_bytes().split(b"\n")
        # SIGKILL has cut off anything that follows the last line end.
        events += [Event(*json.loads(line)) for line in lines[:-1]]
    events.sort(key=lambda event: event.at)
    return events


@dataclass(slots=True)
class Operation:
    """One operation, from its invocation to its return."""

    who: str
    what: str
    lock: str
    invoked: float
    given: dict[str, Any]
    returned: float = math.inf
    outcome: str = UNKNOWN
    got: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Hold:
    """One outermost hold, as its owner saw it."""

    who: str
    lock: str
    claim: str
    token: int
    invoked: float
    granted: float
    """The time at which ``acquire`` or ``attach`` returned. The hold may have begun earlier."""
    deadline: float
    """The latest local deadline that the owner is known to have believed in."""
    over: float = math.inf
    """The time at which the owner began to release, noticed the loss, or was last heard of."""
    depths: set[int] = field(default_factory=lambda: {1})
    """All depths that the owner has asked for."""
    beliefs: list[tuple[float, float]] = field(default_factory=list)
    """The times at which the owner read a deadline, each with that deadline. They are cleared when
    the owner asks for a lease of another length.
    """
    lost_at: float = math.inf
    """The time at which an error first told the owner of the loss."""
    told_at: float = math.inf
    """The time at which ``on_lost`` was called."""
    was_open: bool = False
    """True if its owner has ended without a word about its end."""
    is_attached: bool = False
    """True if another owner has detached it, and this one has attached it."""

    @property
    def ended(self) -> float:
        """The time until which the hold is valid, so that nobody else may have the lock."""
        return min(self.over, self.told_at, self.deadline)


@dataclass(slots=True)
class Fault:
    """Something that was done to the servers, the network or a process, and was healed later."""

    name: str
    begun: float
    targets: frozenset[str]
    """The contenders' processes that suffer from the fault, by the beginnings of their names. "*"
    means all.
    """
    breaks_exclusion: bool
    healed: float = math.inf
    """The time at which the direct consequences were over."""

    def hits(self, who: str) -> bool:
        process = process_of(who)
        return any(
            target == "*" or f"{process}.".startswith(f"{target}.") for target in self.targets
        )


def process_of(who: str) -> str:
    return who.partition("/")[0]


class Violation(NamedTuple):
    rule: str
    text: str


class History:
    """The events of a run, put together to the operations, holds and faults that rules look at."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.operations: list[Operation] = []
        self.holds: list[Hold] = []
        self.faults: list[Fault] = []
        self.ended_at: float = events[-1].at if events else 0.0
        self.dead_at: dict[str, float] = {}
        """Maps each process that was killed to the time of that."""
        self.notes: list[Event] = []
        """Other events, among them what contenders found wrong by themselves, and what the probe
        found wrong at the end.
        """
        open_operations: dict[str, Operation] = {}
        open_holds: dict[str, Hold] = {}
        last_holds: dict[tuple[str, str], Hold] = {}
        early_losses: dict[str, float] = {}
        """Maps claims whose ``acquire`` has not returned yet to the times of their ``on_lost``.

        A task may have the lock some time before the thread that asked it for that is told.
        """
        for event in events:
            if event.phase == NOTE:
                self._note(event, open_holds, last_holds, early_losses)
                continue
            if event.phase == INVOKE:
                operation = Operation(event.who, event.what, event.lock, event.at, event.data)
                open_operations[event.who] = operation
                self.operations.append(operation)
                hold = open_holds.get(event.who)
                if hold is not None:
                    self._begin(hold, operation)
                continue
            operation = open_operations.pop(event.who)
            operation.returned, operation.outcome, operation.got = event.at, event.phase, event.data
            if operation.what in ("acquire", "attach") and operation.outcome == OK:
                got = operation.got
                hold = Hold(
                    event.who,
                    event.lock,
                    got["claim"],
                    got["token"],
                    operation.invoked,
                    event.at,
                    got["deadline"],
                    depths={1},
                    is_attached=operation.what == "attach",
                )
                hold.beliefs.append((event.at, hold.deadline))
                hold.told_at = early_losses.get(hold.claim, math.inf)
                self.holds.append(hold)
                open_holds[event.who] = last_holds[event.who, event.lock] = hold
            elif event.who in open_holds:
                hold = open_holds[event.who]
                self._finish(hold, operation)
                if operation.what == "release" or (
                    operation.what == "detach" and not operation.got.get("owned")
                ):
                    del open_holds[event.who]
        self._last_words(open_holds.values(), events)

    def _note(
        self,
        event: Event,
        open_holds: dict[str, Hold],
        last_holds: dict[tuple[str, str], Hold],
        early_losses: dict[str, float],
    ) -> None:
        if event.what == "fault":
            data = event.data
            if data["phase"] == "begin":
                self.faults.append(
                    Fault(
                        data["name"], event.at, frozenset(data["targets"]), data["breaks_exclusion"]
                    )
                )
            else:
                next(
                    fault for fault in reversed(self.faults) if fault.name == data["name"]
                ).healed = event.at + data.get("aftermath_seconds", 0.0)
        elif event.what == "killed":
            self.dead_at[event.data["process"]] = event.at
        elif event.what == "held":
            hold = open_holds[event.who]
            hold.deadline = max(hold.deadline, event.data["deadline"])
            hold.beliefs.append((event.at, event.data["deadline"]))
            self.notes.append(event)
        elif event.what == "lost":
            # The callback may come when its owner has learnt of the loss and holds the lock again.
            told = next(
                (
                    hold
                    for hold in self.holds
                    if (hold.who, hold.lock) == (event.who, event.lock)
                    and hold.lost_at < math.inf == hold.told_at
                ),
                last_holds.get((event.who, event.lock)),
            )
            claim = event.data.get("claim", "")
            if claim and all(hold.claim != claim for hold in self.holds):
                early_losses[claim] = event.at
            elif told is not None:
                told.told_at = min(told.told_at, event.at)
        else:
            self.notes.append(event)

    @staticmethod
    def _begin(hold: Hold, operation: Operation) -> None:
        if operation.what in ("nest", "unnest"):
            hold.depths.add(operation.given["depth"])
        elif operation.what == "renew":
            hold.beliefs.clear()
        elif operation.what == "release":
            hold.deadline = max(hold.deadline, operation.given["deadline"])
            hold.over = min(hold.over, operation.invoked)

    @staticmethod
    def _finish(hold: Hold, operation: Operation) -> None:
        if operation.got.get("lost"):
            hold.lost_at = min(hold.lost_at, operation.returned)
            hold.over = min(hold.over, operation.returned)
        elif operation.what == "detach":
            if not operation.got.get("owned"):
                hold.over = min(hold.over, operation.invoked)
        elif operation.what == "renew":
            # This is so even without an answer. The new deadline may be earlier than the last one.
            hold.deadline = operation.got["deadline"]
            hold.beliefs.append((operation.returned, hold.deadline))
        elif operation.what == "nest":
            hold.deadline = max(hold.deadline, operation.got["deadline"])
            hold.beliefs.append((operation.returned, operation.got["deadline"]))

    @staticmethod
    def _last_words(holds: Iterable[Hold], events: Sequence[Event]) -> None:
        """End the holds that are still open when their owners were last heard of."""
        heard = {event.who: event.at for event in events}
        for hold in holds:
            hold.over, hold.was_open = min(hold.over, heard[hold.who]), True
