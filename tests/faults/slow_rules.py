"""The rules once more, defined as plainly as possible, however long that takes.

``test_rules.py`` compares each rule with its slow definition.
"""

from __future__ import annotations

import itertools

from tests.faults.history import OK, UNKNOWN, History, Hold, Operation
from tests.faults.rules import Bounds

BOUNDS = Bounds(lease_seconds=10.0, slack_seconds=1.0)


def slow_rising(history: History) -> int:
    return sum(
        any(one.granted < other.invoked and one.token > other.token for one in history.holds)
        for other in history.holds
    )


def slow_unique(history: History) -> int:
    return len(history.holds) - len({hold.token for hold in history.holds})


def slow_overlaps(history: History) -> set[tuple[str, str, bool]]:
    def excused(one: Hold, other: Hold) -> bool:
        return any(
            fault.breaks_exclusion
            and fault.begun <= other.granted
            and fault.healed >= min(one.invoked, other.invoked)
            for fault in history.faults
        )

    return {
        (one.claim, other.claim, excused(one, other))
        for one, other in itertools.combinations(
            sorted(history.holds, key=lambda hold: hold.granted), 2
        )
        if other.granted < min(one.ended, other.ended)
    }


def slow_deadlines(history: History) -> int:
    found = 0
    for look in (operation for operation in history.operations if operation.what == "inspect"):
        for hold in history.holds:
            beliefs = [deadline for at, deadline in hold.beliefs if at < look.invoked]
            broken_by = any(
                f.breaks_exclusion and f.begun <= look.returned and f.healed >= hold.invoked
                for f in history.faults
            )
            if (
                look.got["owner"] == hold.claim
                and beliefs
                and look.returned < hold.over
                and not broken_by
            ):
                found += (
                    beliefs[-1] > look.returned + look.got["remaining"] + BOUNDS.precision_seconds
                )
    return found


def slow_read_modify_write(history: History) -> bool:
    """Return True if some order of all accepted writes, and of some with an unknown outcome,
    explains what each has read.
    """
    writes = [operation for operation in history.operations if operation.what == "write"]
    accepted = [write for write in writes if write.outcome == OK]
    unknown = [write for write in writes if write.outcome == UNKNOWN]

    def explains(order: tuple[Operation, ...]) -> bool:
        values = ["", *(write.given["value"] for write in order)]
        return all(
            write.outcome == UNKNOWN
            or (write.got["read_version"], write.got["read_value"]) == (place, values[place])
            for place, write in enumerate(order)
        )

    return not any(
        explains(order)
        for size in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, size)
        for order in itertools.permutations([*accepted, *chosen])
    )


def slow_rejections(history: History) -> int:
    writes = [operation for operation in history.operations if operation.what == "write"]
    return sum(
        not any(
            other.given["token"] == write.got["stored"] > write.given["token"]
            and other.invoked < write.returned
            for other in writes
        )
        for write in writes
        if "stored" in write.got
    )


def slow_stalled_seconds(history: History) -> float:
    """Add up the times between two events in which somebody waits and nobody holds the lock. During
    each such time, neither changes.
    """
    times = sorted(
        {t for o in history.operations for t in (o.invoked, o.returned)}
        | {t for hold in history.holds for t in (hold.granted, hold.ended, hold.over)}
        | {history.ended_at}
    )
    stalled = 0.0
    for begun, ended in itertools.pairwise(times):
        waiting = any(
            o.what == "acquire" and o.invoked <= begun and o.returned >= ended
            for o in history.operations
        )
        held = any(
            h.granted <= begun and (h.over if h.lost_at == float("inf") else h.ended) >= ended
            for h in history.holds
        )
        stalled += (ended - begun) * (waiting and not held)
    return stalled
