"""The promises of the library. Each is a rule over the history of a run, in O(n log n)."""

from __future__ import annotations

import bisect
import functools
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tests.faults.history import (
    FAIL,
    OK,
    UNKNOWN,
    Fault,
    History,
    Hold,
    Operation,
    Violation,
    process_of,
)

MOST_SHOWN = 20
"""The most violations of one rule that are listed, because a broken build has thousands."""


REFUSING = ("maxmemory",)
"""The names of faults during which an acquire may be refused with an error of the server."""


REVIVING = ("step-server-clock", "fail-over")
"""The names of faults after which a hold that was released may live again for its lease."""


@dataclass(frozen=True)
class Bounds:
    """The lengths of time that promises depend on, in seconds."""

    lease_seconds: float
    slack_seconds: float = 3.0
    """How late anything may be on a machine with two busy cores."""
    expiry_seconds: float = 0.1
    """How late the server may notice that a lease has run out."""
    precision_seconds: float = 0.002
    """The greatest error in the rest of a lease that the server reports."""
    grace_seconds: float = float("inf")
    """How long a waiter may leave its turn unused before it may be passed over."""
    clock_step_seconds: float = 0.0
    """The greatest step of a server's clock. Leases may be longer by this much."""

    @property
    def settle_seconds(self) -> float:
        """How long the consequences of a fault may last after it has been healed."""
        return (
            self.lease_seconds + self.expiry_seconds + self.clock_step_seconds + self.slack_seconds
        )


Found = Iterator[str]
Rule = Callable[[History, Bounds], Found]


def unique_tokens(history: History, bounds: Bounds) -> Found:
    """Each outermost hold has a token of its own, which it keeps when it goes to another owner."""
    seen: dict[tuple[str, int], Hold] = {}
    for hold in history.holds:
        other = seen.setdefault((hold.lock, hold.token), hold)
        if other is not hold and not hold.is_attached:
            yield f"{_said(other)} and {_said(hold)} have one token"


def rising_tokens(history: History, bounds: Bounds) -> Found:
    """If one acquire returned before another was invoked, it has the lower token.

    This does not hold if the server has lost its data, and all processes are dead that have held
    the lock with so high a token: nobody is left who could tell the server. The documentation says
    so.
    """
    losses = [fault for fault in history.faults if fault.breaks_exclusion]
    for holds in _by_lock(history.holds).values():
        returned = sorted(holds, key=lambda hold: hold.granted)
        highest: Hold | None = None
        place = 0
        for hold in sorted(holds, key=lambda hold: hold.invoked):
            while place < len(returned) and returned[place].granted < hold.invoked:
                if highest is None or returned[place].token > highest.token:
                    highest = returned[place]
                place += 1
            if highest is None or highest.token <= hold.token or hold.is_attached:
                continue
            nobody_knows = all(
                history.dead_at.get(process_of(each.who), math.inf) < hold.invoked
                for each in holds
                if each.token >= highest.token and each.granted < hold.granted
            )
            if not nobody_knows or not any(
                fault.begun <= hold.granted and fault.healed >= highest.granted for fault in losses
            ):
                yield f"{_said(hold)} came after {_said(highest)}"


def reentry(history: History, bounds: Bounds) -> Found:
    """A nested acquire keeps the token and adds 1 to the depth. A nested release subtracts 1, and
    does not free the lock.
    """
    depth: dict[str, int] = {}
    token: dict[str, int] = {}
    for operation in history.operations:
        who, got = operation.who, operation.got
        if operation.outcome != OK:
            continue
        if operation.what in ("acquire", "attach"):
            depth[who], token[who] = 1, got["token"]
        elif operation.what in ("nest", "unnest"):
            depth[who] += 1 if operation.what == "nest" else -1
            if (got["depth"], got["token"]) != (depth[who], token[who]):
                yield (
                    f"{_did(operation)}: depth {got['depth']} and token {got['token']} instead of "
                    f"{depth[who]} and {token[who]}"
                )


def counts(history: History, bounds: Bounds) -> Found:
    """The server's count is one that the holder has asked for, and a claim that has released is not
    the owner any more.

    If the server's clock is set back, a copy of a request that was held up on its way is in time
    again. The lock is then granted to the claim once more, and nobody renews that grant. A replica
    that lags behind does not know of the last grants and releases when it takes over.
    """
    steps = Windows(fault for fault in history.faults if fault.name in REVIVING)
    holds = {hold.claim: hold for hold in history.holds}
    released = {
        operation.given["claim"]: operation
        for operation in history.operations
        if operation.what == "release" and operation.outcome == OK and operation.got["answered"]
    }
    for look in _looks(history):
        hold = holds.get(look.got["owner"])
        # The look may have seen an earlier grant to this claim, which lapsed on its way.
        if hold is None or look.invoked < hold.granted:
            continue
        if (hold.ended < look.invoked or look.got["token"] != hold.token) and steps.meet(
            look.invoked - bounds.settle_seconds, look.invoked
        ):
            continue
        if look.got["token"] != hold.token:
            yield f"{_said(hold)}: the server says token {look.got['token']}"
        if look.got["count"] not in hold.depths:
            yield (
                f"{_said(hold)}: the server counts {look.got['count']}, and only "
                f"{sorted(hold.depths)} were asked for"
            )
        release = released.get(hold.claim)
        if release is not None and release.returned < look.invoked:
            yield f"{_said(hold)} is the owner at {look.invoked:.6f}, after its {_did(release)}"


def overlaps(history: History) -> Iterator[tuple[Hold, Hold, bool]]:
    """Yield the pairs of holds of one lock that were valid at the same time. The third value is
    True if a fault excuses them.
    """
    breaking = Windows(fault for fault in history.faults if fault.breaks_exclusion)
    for holds in _by_lock(history.holds).values():
        active: list[tuple[float, int, Hold]] = []
        for number, hold in enumerate(sorted(holds, key=lambda hold: hold.granted)):
            while active and active[0][0] <= hold.granted:
                heapq.heappop(active)
            if hold.ended > hold.granted:
                for _, _, other in active:
                    # The later one may have been granted first: its owner may hear of that late.
                    begun = min(other.invoked, hold.invoked)
                    yield other, hold, breaking.meet(begun, hold.granted)
                heapq.heappush(active, (hold.ended, number, hold))


def exclusion(history: History, bounds: Bounds) -> Found:
    """Holds do not overlap while they are valid, that is, from the grant until the release, the
    notice of the loss or the local deadline.
    """
    for one, other, excuse in overlaps(history):
        if not excuse:
            yield f"{_said(one)} and {_said(other)}"


def passing(history: History, bounds: Bounds) -> Found:
    """A detached hold is attached at most once, with its token, and until its lease ends by whoever
    has the secret. Nobody else has the lock meanwhile.
    """
    breaking = Windows(fault for fault in history.faults if fault.breaks_exclusion)
    detached = {
        operation.got["digest"]: operation
        for operation in history.operations
        if operation.what == "detach" and operation.outcome == OK
    }
    attempts: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        if operation.what == "attach":
            attempts[operation.given["digest"]].append(operation)
    for digest, tries in attempts.items():
        detach = detached[digest]
        done = [attach for attach in tries if attach.outcome == OK]
        if len(done) > 1 and not breaking.meet(detach.invoked, done[-1].returned):
            yield f"{_did(detach)} was attached by {' and by '.join(map(_did, done))}"
        for attach in done:
            if attach.got["token"] != detach.given["token"]:
                yield f"{_did(attach)} got token {attach.got['token']}"
        first = tries[0]
        if (
            len(tries) == 1
            and first.outcome == FAIL
            and first.got["why"] == "NotOwnedError"
            and first.returned < detach.invoked + detach.given["lease"]
            and not breaking.meet(detach.invoked, first.returned)
        ):
            yield f"{_did(first)} was refused, although nobody had attached it"
    for holds in _by_lock(history.holds).values():
        highest: Hold | None = None
        for hold in sorted(holds, key=lambda hold: hold.granted):
            if (
                hold.is_attached
                and highest is not None
                and highest.token > hold.token
                and hold.ended > hold.granted
                and not breaking.meet(min(hold.invoked, highest.invoked), hold.granted)
            ):
                yield f"{_said(highest)} was granted before {_said(hold)} was attached"
            if highest is None or hold.token > highest.token:
                highest = hold


def deadlines(history: History, bounds: Bounds) -> Found:
    """No holder believes in a lease for longer than the server does."""
    holds = {hold.claim: hold for hold in history.holds}
    breaking = Windows(fault for fault in history.faults if fault.breaks_exclusion)
    for look in _looks(history):
        hold = holds.get(look.got["owner"])
        if hold is None or hold.over <= look.returned or breaking.meet(hold.invoked, look.returned):
            continue
        place = bisect.bisect_left(hold.beliefs, (look.invoked, 0.0)) - 1
        if place >= 0:
            believed = hold.beliefs[place][1]
            until = look.returned + look.got["remaining"] + bounds.precision_seconds
            if believed > until:
                yield (
                    f"{_said(hold)} believes {believed - until:.6f} s longer than the server, at "
                    f"{look.returned:.6f}"
                )


def loss(history: History, bounds: Bounds) -> Found:
    """From its deadline on, a holder that looks sees the loss, and ``on_lost`` is called."""
    for event in history.notes:
        if event.what == "held" and event.data["asked_at"] >= event.data["deadline"]:
            asked_at, deadline = event.data["asked_at"], event.data["deadline"]
            yield (
                f"{event.who} was told at {asked_at:.6f} that it holds {event.lock}, after its "
                f"deadline {deadline:.6f}"
            )
    frozen = _hitting(history, "freeze-client")
    for hold in history.holds:
        until = (
            min(history.dead_at.get(process_of(hold.who), history.ended_at), history.ended_at)
            - bounds.slack_seconds
        )
        if (
            hold.lost_at < until
            and hold.told_at > hold.lost_at + bounds.slack_seconds
            and not frozen(hold.who).meet(hold.lost_at, hold.lost_at)
        ):
            yield (
                f"{_said(hold)} learnt of its loss at {hold.lost_at:.6f}, and on_lost was not "
                "called"
            )


def write_order(history: History, bounds: Bounds) -> Found:
    """The tokens of accepted writes never decrease."""
    for chain in _chains(history).values():
        for before, after in itertools.pairwise(chain):
            if after.given["token"] < before.given["token"]:
                yield f"{_did(after)} after {_did(before)}"


def read_modify_write(history: History, bounds: Bounds) -> Found:
    """Each accepted read-modify-write has read the value that the one before it wrote."""
    for (store, lock), chain in _chains(history).items():
        unknown = {
            write.given["value"]
            for write in _writes(history)
            if (write.given["store"], write.lock, write.outcome) == (store, lock, UNKNOWN)
        }
        left = len(unknown)
        version, value = 0, ""
        for write in chain:
            read, found = write.got["read_version"], write.got["read_value"]
            gap = read - version  # the number of writes that were done unknown to their writers
            if gap < 0 or gap > left or (found not in unknown if gap else found != value):
                yield f"{_did(write)} read {read} {found!r} after {version} {value!r}"
            elif gap:
                unknown.discard(found)
                left -= gap
            version, value = read + 1, write.given["value"]


def rejections(history: History, bounds: Bounds) -> Found:
    """A write is rejected only if a write with a higher token was invoked before."""
    first: dict[tuple[str, str, int], float] = {}
    for write in _writes(history):
        key = (write.given["store"], write.lock, write.given["token"])
        first[key] = min(first.get(key, write.invoked), write.invoked)
    for write in _writes(history):
        stored = write.got.get("stored")
        if write.outcome != FAIL or stored is None:
            continue
        if not (
            stored > write.given["token"]
            and first.get((write.given["store"], write.lock, stored), float("inf")) < write.returned
        ):
            yield f"{_did(write)} was refused for token {stored}, with which nobody wrote before"


def fairness(history: History, bounds: Bounds) -> Found:
    """FairLocks are granted in the order of the queue, among the waiters that could be reached."""
    holds = {hold.claim: hold for hold in history.holds}
    turns = {lock: _long_turns(held, bounds) for lock, held in _by_lock(history.holds).items()}
    hitting = _hitting(history)
    for look in _looks(history):
        if not look.lock.startswith("fair"):
            continue
        line = [
            holds[claim]
            for claim in look.got["queue"]
            if claim in holds and claim != look.got["owner"]
        ]
        for place, later in enumerate(line):
            for earlier in line[:place]:
                if earlier.token < later.token or turns[look.lock].meet(
                    earlier.invoked, later.granted
                ):
                    continue
                if not hitting(earlier.who).meet(
                    look.invoked - bounds.settle_seconds, later.granted
                ):
                    yield (
                        f"{_said(later)} overtook {_said(earlier)}, which was before it in the "
                        f"queue at {look.invoked:.6f}"
                    )


def _long_turns(holds: list[Hold], bounds: Bounds) -> Windows:
    """Return the times in which the lock was free for the grace period or longer. The waiter that
    should have taken it may be passed over from then on.
    """
    free_since, windows = float("-inf"), []
    for hold in sorted(holds, key=lambda hold: hold.granted):
        if hold.granted - free_since >= bounds.grace_seconds:
            windows.append(
                Fault(
                    "a turn", free_since, frozenset(), breaks_exclusion=False, healed=hold.granted
                )
            )
        free_since = max(free_since, hold.ended)
    return Windows(windows)


def timeouts(history: History, bounds: Bounds) -> Found:
    """An acquire with a timeout returns in time, whatever happens."""
    for operation in history.operations:
        timeout = operation.given.get("timeout")
        if operation.what != "acquire" or timeout is None:
            continue
        returned = min(
            operation.returned, history.dead_at.get(process_of(operation.who), history.ended_at)
        )
        late = returned - operation.invoked - timeout - bounds.slack_seconds
        if late > 0 and late > _frozen_seconds(history, operation.who, operation.invoked, returned):
            yield (
                f"{_did(operation)} with timeout {timeout} was {late + bounds.slack_seconds:.3f} s "
                "late"
            )


def stalls(history: History) -> Iterator[tuple[float, float, str]]:
    """Yield the begin, the end and the lock of each time in which somebody waited and nobody held a
    valid lease.
    """
    changes: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for operation in history.operations:
        if operation.what == "acquire" and operation.given.get("timeout") != 0:
            returned = min(
                operation.returned, history.dead_at.get(process_of(operation.who), history.ended_at)
            )
            changes[operation.lock] += [(operation.invoked, 1, 0), (returned, -1, 0)]
    for hold in history.holds:
        # A hold was renewed even while its holder did not look.
        until = hold.over if hold.lost_at == float("inf") else hold.ended
        if hold.was_open and hold.lost_at == float("inf"):
            until = max(until, history.dead_at.get(process_of(hold.who), until))
        if until > hold.granted:
            changes[hold.lock] += [(hold.granted, 0, 1), (until, 0, -1)]
    for lock, deltas in changes.items():
        deltas.sort()
        waiting = holding = 0
        since: float | None = None
        for at, waits, holds in deltas:
            waiting, holding = waiting + waits, holding + holds
            if waiting and not holding:
                since = at if since is None else since
            elif since is not None:
                yield since, at, lock
                since = None


def progress(history: History, bounds: Bounds) -> Found:
    """A crash blocks others for at most one lease."""
    crashes = sorted(fault.begun for fault in history.faults if fault.name == "kill-client")
    for begun, ended, lock in stalls(history):
        # A process may crash after it was granted the lock and before anybody heard of that.
        first, last = (bisect.bisect(crashes, at) for at in (begun - bounds.lease_seconds, ended))
        leases = max(1, last - first) * bounds.lease_seconds
        allowed = leases + bounds.expiry_seconds + bounds.slack_seconds
        if ended - begun > allowed:
            excused = sum(
                max(0.0, min(ended, fault.healed + bounds.settle_seconds) - max(begun, fault.begun))
                for fault in history.faults
                if fault.name != "kill-client"
            )
            if ended - begun - excused > allowed:
                yield (
                    f"{lock} was held by nobody from {begun:.6f} for {ended - begun:.3f} s, while "
                    "somebody waited"
                )


def recovery(history: History, bounds: Bounds) -> Found:
    """One lease after the faults are healed, a probe gets each lock, and dead waiters have left
    nothing behind.
    """
    yield from (
        f"{event.lock}: {event.data['text']}"
        for event in history.notes
        if event.what == "unrecovered"
    )


def contenders(history: History, bounds: Bounds) -> Found:
    """No contender hangs, inherits a hold through a fork, or gets an error that the documentation
    does not name.
    """
    refusing = Windows(fault for fault in history.faults if fault.name in REFUSING)
    for operation in history.operations:
        if "refused" in operation.got and not refusing.meet(operation.invoked, operation.returned):
            yield f"{_did(operation)} was refused: {operation.got['refused']}"
    yield from (
        f"{event.who}: {event.data['text']}"
        for event in history.notes
        if event.what == "unexpected"
    )


RULES: dict[str, Rule] = {
    "unique tokens": unique_tokens,
    "rising tokens": rising_tokens,
    "reentry": reentry,
    "counts": counts,
    "exclusion": exclusion,
    "passing": passing,
    "deadlines": deadlines,
    "loss": loss,
    "write order": write_order,
    "read-modify-write": read_modify_write,
    "rejections": rejections,
    "fairness": fairness,
    "timeouts": timeouts,
    "progress": progress,
    "recovery": recovery,
    "contenders": contenders,
}


def violations(history: History, bounds: Bounds) -> list[Violation]:
    """Return the violations in the history, at most MOST_SHOWN of each rule."""
    return [
        Violation(name, text)
        for name, rule in RULES.items()
        for text in itertools.islice(rule(history, bounds), MOST_SHOWN)
    ]


# --- what several rules look at


def _by_lock(holds: Iterable[Hold]) -> dict[str, list[Hold]]:
    found: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        found[hold.lock].append(hold)
    return found


def _looks(history: History) -> Iterator[Operation]:
    return (
        operation
        for operation in history.operations
        if operation.what == "inspect" and operation.outcome == OK
    )


def _writes(history: History) -> Iterator[Operation]:
    return (operation for operation in history.operations if operation.what == "write")


def _chains(history: History) -> dict[tuple[str, str], list[Operation]]:
    """Return the accepted writes to each register, in the order of the versions that they read."""
    chains: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for write in _writes(history):
        if write.outcome == OK:
            chains[write.given["store"], write.lock].append(write)
    for chain in chains.values():
        chain.sort(key=lambda write: (write.got["read_version"], write.invoked))
    return chains


class Windows:
    """The times of faults. Tells whether any of them meets another time."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        ordered = sorted(faults, key=lambda fault: fault.begun)
        self._begun = [fault.begun for fault in ordered]
        self._healed = list(itertools.accumulate((fault.healed for fault in ordered), max))

    def meet(self, begun: float, ended: float) -> bool:
        place = bisect.bisect_right(self._begun, ended) - 1
        return place >= 0 and self._healed[place] >= begun


def _hitting(history: History, prefix: str = "") -> Callable[[str], Windows]:
    """Return a function from a contender to the times of the faults of this kind that hit it."""

    @functools.cache
    def of(process: str) -> Windows:
        return Windows(
            fault
            for fault in history.faults
            if fault.name.startswith(prefix) and fault.hits(process)
        )

    return lambda who: of(process_of(who))


def _frozen_seconds(history: History, who: str, begun: float, ended: float) -> float:
    return sum(
        max(0.0, min(ended, fault.healed) - max(begun, fault.begun))
        for fault in history.faults
        if fault.name.startswith("freeze-client") and fault.hits(who)
    )


def _said(hold: Hold) -> str:
    return (
        f"{hold.who}'s hold {hold.claim} of {hold.lock} [{hold.granted:.6f}, {hold.ended:.6f}] "
        f"token {hold.token}"
    )


def _did(operation: Operation) -> str:
    return (
        f"{operation.what} of {operation.lock} by {operation.who} "
        f"[{operation.invoked:.6f}, {operation.returned:.6f}] {operation.given}"
    )
