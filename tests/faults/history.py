"""What happened in a run, as everybody in it saw it: a line for each event, by the one clock of
this host.
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
"""An operation is invoked, and then done (ok), not done (fail), or nobody knows (unknown); a note
is no operation.
"""


class Event(NamedTuple):
    at: float
    """Seconds of :func:`now_seconds`: each process of this host reads the same clock, and nobody
    sets it.
    """
    who: str
    """The thread, as "p3.2/1": the second process in place 3, and its thread 1. A forked child of
    that is "p3.2.1".
    """
    phase: str
    what: str
    lock: str
    data: dict[str, Any]


class Recorder:
    """Writes the events of one process; each is on its way to the file before the next thing
    happens, so SIGKILL loses none.
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
    """All events of a run, in the order of their times."""
    events = []
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_bytes().split(b"\n")
        # What follows the last line end was cut off by SIGKILL.
        events += [Event(*json.loads(line)) for line in lines[:-1]]
    events.sort(key=lambda event: event.at)
    return events


@dataclass(slots=True)
class Operation:
    """From its invocation to its return."""

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
    """When ``acquire`` returned: the hold may have begun before."""
    deadline: float
    """The latest local deadline that the owner is known to have believed in."""
    over: float = math.inf
    """When the owner began to release, noticed the loss, or was last heard of."""
    depths: set[int] = field(default_factory=lambda: {1})
    """Each depth that the owner has asked for."""
    beliefs: list[tuple[float, float]] = field(default_factory=list)
    """When the owner read which deadline, since it last asked for a lease of another length."""
    lost_at: float = math.inf
    """When the owner first learnt of the loss by an error."""
    told_at: float = math.inf
    """When ``on_lost`` was called."""

    @property
    def ended(self) -> float:
        """Until then the hold is valid: nobody else may have the lock."""
        return min(self.over, self.told_at, self.deadline)


@dataclass(slots=True)
class Fault:
    """Something that was done to the servers, the network or a process, and was healed again."""

    name: str
    begun: float
    targets: frozenset[str]
    """The processes of contenders that suffer from it, by the beginnings of their names; "*" means
    all.
    """
    breaks_exclusion: bool
    healed: float = math.inf
    """When its direct consequences were over."""

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
    """The events of a run, put together to what the rules are about."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.operations: list[Operation] = []
        self.holds: list[Hold] = []
        self.faults: list[Fault] = []
        self.ended_at: float = events[-1].at if events else 0.0
        self.dead_at: dict[str, float] = {}
        """When a process was killed."""
        self.notes: list[Event] = []
        """What contenders found wrong by themselves, and what the probe found in the end."""
        open_operations: dict[str, Operation] = {}
        open_holds: dict[str, Hold] = {}
        last_holds: dict[tuple[str, str], Hold] = {}
        for event in events:
            if event.phase == NOTE:
                self._note(event, open_holds, last_holds)
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
            if operation.what == "acquire" and operation.outcome == OK:
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
                )
                hold.beliefs.append((event.at, hold.deadline))
                self.holds.append(hold)
                open_holds[event.who] = last_holds[event.who, event.lock] = hold
            elif event.who in open_holds:
                hold = open_holds[event.who]
                self._finish(hold, operation)
                if operation.what == "release":
                    del open_holds[event.who]
        self._last_words(open_holds.values(), events)

    def _note(
        self, event: Event, open_holds: dict[str, Hold], last_holds: dict[tuple[str, str], Hold]
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
            last = last_holds.get((event.who, event.lock))
            if last is not None:
                last.told_at = min(last.told_at, event.at)
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
        elif operation.what == "renew":
            # Even without an answer: it may be an earlier one than before.
            hold.deadline = operation.got["deadline"]
            hold.beliefs.append((operation.returned, hold.deadline))
        elif operation.what == "nest":
            hold.deadline = max(hold.deadline, operation.got["deadline"])
            hold.beliefs.append((operation.returned, operation.got["deadline"]))

    @staticmethod
    def _last_words(holds: Iterable[Hold], events: Sequence[Event]) -> None:
        """Who was killed while holding holds no longer than it was heard of."""
        heard = {event.who: event.at for event in events}
        for hold in holds:
            hold.over = min(hold.over, heard[hold.who])
