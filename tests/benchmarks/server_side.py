"""Measures what the server does for each operation, and how that grows. The figures are the
commands inside the script and the microseconds, as the server itself counts them.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

import fencedlock
from fencedlock.core.answers import ClaimAnswer
from fencedlock.core.claims import Claim, Hold
from fencedlock.runtime.owners import this_thread
from tests.benchmarks.contestants import LEASE_SECONDS, PEER, PEERS, REDIS_PY
from tests.benchmarks.tables import Table

_TIMEOUT_SECONDS = 5.0


@dataclass
class Cost:
    """The costs of one operation, each time it was done."""

    commands: list[int]
    microseconds: list[float]

    def cells(self) -> list[str]:
        return [
            str(statistics.median_low(self.commands)),
            f"{statistics.median(self.microseconds):.0f}",
        ]


class Meter:
    """Reads the server's own counters before and after a call."""

    def __init__(self, port: int) -> None:
        self.raw = redis.Redis(port=port)
        self.costs: dict[str, Cost] = {}

    def of(self, operation: str, call: Callable[[], Any]) -> Any:
        self.raw.config_resetstat()
        result = call()
        stats = self.raw.info("commandstats")
        mine = {
            name: stat
            for name, stat in stats.items()
            if name not in ("cmdstat_info", "cmdstat_config|resetstat", "cmdstat_config")
        }
        scripts = sum(
            stat["usec"] for name, stat in mine.items() if name.startswith("cmdstat_eval")
        )
        commands = sum(
            stat["calls"] for name, stat in mine.items() if not name.startswith("cmdstat_eval")
        )
        cost = self.costs.setdefault(operation, Cost([], []))
        cost.commands.append(commands)
        cost.microseconds.append(scripts or sum(stat["usec"] for stat in mine.values()))
        return result


class Scene:
    """Claims of two clients on one lock. They work without threads, so each call is one script."""

    def __init__(self, port: int, name: str) -> None:
        self._clients = [
            fencedlock.connect(f"redis://127.0.0.1:{port}", ttl=LEASE_SECONDS) for _ in range(2)
        ]
        self._handles = [client.FairLock(name) for client in self._clients]
        for client in self._clients:
            client._table.listen(5)
        self._numbers = itertools.count()

    def claim(self) -> Claim:
        number = next(self._numbers)
        handle, client = self._handles[number % 2], self._clients[number % 2]
        return Claim(
            f"{client.id}/bench/{number}",
            handle._settings.resource.bound,
            this_thread.owner,
            LEASE_SECONDS,
            True,
            True,
        )

    def hold(self, claim: Claim) -> Hold:
        """Return the hold of a claim that has the lock, or that gets it when it asks."""
        answer = ask(claim)
        assert isinstance(answer, tuple)  # a grant
        token, deadline, abandoned, _ = answer
        return Hold(claim, token, deadline, abandoned, self._handles[0]._settings.handle, {})

    def renew(self, hold: Hold) -> None:
        self._clients[0]._table.backend.renew([hold], _TIMEOUT_SECONDS)

    def beat(self, claim: Claim) -> None:
        self._clients[0]._table.backend.beat([claim], _TIMEOUT_SECONDS)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def ask(claim: Claim, *, queue: bool = True) -> ClaimAnswer:
    return claim.bound.acquire(claim, queue, _TIMEOUT_SECONDS)


def release(hold: Hold) -> None:
    hold.bound.release(hold, _TIMEOUT_SECONDS)


def of_free_locks(port: int, times: int, others: int = 0) -> dict[str, Cost]:
    """Measure operations on a lock that nobody else wants, while this many other locks are held."""
    meter, scene = Meter(port), Scene(port, "server/free")
    with fencedlock.connect(f"redis://127.0.0.1:{port}", ttl=3600) as crowd:
        held = [crowd.RLock(f"server/other/{number}") for number in range(others)]
        for lock in held:
            lock.acquire()
        for _ in range(times):
            claim = scene.claim()
            meter.of("acquire, of a free lock", partial(ask, claim))
            hold = scene.hold(claim)
            meter.of("renew, or nest", partial(scene.renew, hold))
            meter.of("release, nobody waiting", partial(release, hold))
        scene.close()
        meter.raw.flushall()
    return meter.costs


def of_a_queue(port: int, times: int, others: int = 0) -> dict[str, Cost]:
    """Measure hand-offs of one lock, while this many other claims wait for it."""
    meter, scene = Meter(port), Scene(port, "server/queue")
    holder = scene.hold(scene.claim())
    line = deque(scene.claim() for _ in range(others))
    for claim in line:
        ask(claim)
    for _ in range(times):
        claim = scene.claim()
        meter.of("acquire, and wait", partial(ask, claim))
        line.append(claim)
        meter.of("beat of a waiter", partial(scene.beat, claim))
        meter.of("one try at a held lock", partial(ask, scene.claim(), queue=False))
        meter.of("release, and hand over", partial(release, holder))
        holder = scene.hold(line.popleft())
    scene.close()
    meter.raw.flushall()
    return meter.costs


def of_peers(port: int, times: int) -> dict[str, Cost]:
    meter = Meter(port)
    for label in (REDIS_PY, PEER):
        lock = PEERS[label](port, "server/peer")
        for _ in range(times):
            meter.of(f"{label}: acquire", lock.acquire)
            meter.of(f"{label}: release", lock.release)
    meter.raw.flushall()
    return meter.costs


def table(port: int, times: int) -> Table:
    made = Table("server", ["at the server, for each operation", "commands", "µs"])
    for costs in (of_free_locks(port, times), of_a_queue(port, times), of_peers(port, times)):
        made.rows += [[operation, *cost.cells()] for operation, cost in costs.items()]
    return made


def growth(port: int, times: int, beside: str, others: list[int]) -> Table:
    """Return a table of times in µs with more and more others of a kind, "locks" or "waiters"."""
    measure = {"locks": of_free_locks, "waiters": of_a_queue}[beside]
    columns = [measure(port, times, count) for count in others]
    made = Table(
        f"growth-{beside}",
        [f"µs at the server, {beside} besides", *(f"{count:,}" for count in others)],
    )
    for operation in columns[0]:
        made.rows.append([operation, *(column[operation].cells()[1] for column in columns)])
    return made
