"""Six writers update a store, and one of them is frozen past its lease.

In every store, no update is lost, and no stale update is accepted.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import pytest

import fencedlock
from fencedlock import LockLostError, RLock, StaleTokenError
from tests.conftest import eventually
from tests.fencing.stores import STORES, Store

WRITERS = 6
UPDATES = 300
EACH = UPDATES // WRITERS
LEASE_SECONDS = 0.5

FREEZES = {1: "checking", 4: "checked", 7: "checking", 10: "checked"}
"""The points at which the frozen writer is frozen.

Maps the number of its accepted updates to a point in the next update: before or after the check.
"""

_spawn = multiprocessing.get_context("spawn")


@dataclass
class Outcome:
    accepted: list[int] = field(default_factory=list)
    refused: list[tuple[int, int | None]] = field(default_factory=list)
    """The presented and the stored token of each refused update."""
    refused_while_held: list[int] = field(default_factory=list)


def write(
    lock: RLock,
    store: Store,
    at: Callable[[int, int, str], None],
    may_end: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Make updates until enough are accepted and ``may_end`` returns True."""
    outcome = Outcome()
    while len(outcome.accepted) < EACH or not may_end():
        try:
            with lock as token:
                made, number = len(outcome.accepted), int(token)
                try:
                    store.update(
                        token,
                        lambda where, made=made, number=number: at(made, number, where),  # type: ignore[misc]
                    )
                    outcome.accepted.append(number)
                except StaleTokenError as error:
                    outcome.refused.append((error.presented, error.stored))
                    lock.ensure_held()  # should raise
                    outcome.refused_while_held.append(number)
        except LockLostError:
            pass  # an update that the store has accepted counts all the same
    return outcome


def write_and_freeze(
    parent: Connection, url: str, name: str, store_name: str, database: dict[str, str]
) -> None:
    """Run the writer that is frozen, in a process of its own."""
    freezes = dict(FREEZES)

    def at(made: int, number: int, where: str) -> None:
        if freezes.get(made) == where:
            del freezes[made]
            parent.send((where, number))
            parent.recv()

    store = STORES[store_name](database)
    with fencedlock.connect(url, ttl=LEASE_SECONDS) as client:
        parent.send(write(client.FairLock(name), store, at))
    store.close()


@pytest.mark.parametrize("store_name", list(STORES))
def test_no_update_is_lost_and_no_stale_one_accepted(
    store_name: str,
    open_store: Callable[..., Store],
    connect: Callable[..., fencedlock.Client],
    server: object,
    name: str,
) -> None:
    url = server.url  # type: ignore[attr-defined]
    client = connect(url, ttl=LEASE_SECONDS)
    first = open_store(store_name)
    outcomes: list[Outcome] = []
    checking: set[int] = set()
    thawed = threading.Event()

    def note(_: int, number: int, where: str) -> None:
        if where == "checking":
            checking.add(number)

    def body() -> None:
        store = STORES[store_name](first.database)
        outcomes.append(write(client.FairLock(name), store, note, thawed.is_set))
        store.close()

    ours, theirs = _spawn.Pipe()
    frozen = _spawn.Process(
        target=write_and_freeze, args=(theirs, url, name, store_name, first.database), daemon=True
    )
    threads = [threading.Thread(target=body, daemon=True) for _ in range(WRITERS - 1)]
    frozen.start()
    theirs.close()
    try:
        assert ours.poll(60)
        said = ours.recv()  # the frozen writer has started
        for thread in threads:
            thread.start()
        while not isinstance(said, Outcome):
            where, number = said
            assert frozen.pid is not None
            os.kill(frozen.pid, signal.SIGSTOP)
            # Wait until another writer holds the lock, and has begun a transaction (or made one)
            # while the frozen writer sleeps.
            eventually(lambda number=number: any(other > number for other in checking), 30)  # type: ignore[misc]
            if where == "checking" and not first.begin_locks:
                eventually(lambda number=number: newest(first) > number, 30)  # type: ignore[misc]
            ours.send("go on")
            os.kill(frozen.pid, signal.SIGCONT)
            assert ours.poll(60)
            said = ours.recv()
        outcomes.append(said)
    finally:
        thawed.set()
        frozen.kill()
        frozen.join()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == WRITERS

    first.begin()
    history = [
        (int(balance), int(token))
        for balance, token in first.run("SELECT balance, token FROM history ORDER BY balance")
    ]
    assert first.read() == len(history), "an update was lost"
    first.rollback()
    assert [balance for balance, _ in history] == list(range(1, len(history) + 1))
    assert len(history) >= UPDATES
    assert all(earlier < later for (_, earlier), (_, later) in itertools.pairwise(history)), (
        "a stale write was accepted"
    )
    assert sorted(token for outcome in outcomes for token in outcome.accepted) == [
        token for _, token in history
    ]
    assert not [token for outcome in outcomes for token in outcome.refused_while_held], (
        "a valid write was refused"
    )
    refused = [pair for outcome in outcomes for pair in outcome.refused]
    tokens = {token for _, token in history}
    assert all(
        stored in tokens and presented < stored
        for presented, stored in refused
        if stored is not None
    )
    frozen_before_check = sum(where == "checking" for where in FREEZES.values())
    assert len(said.refused) >= (0 if first.begin_locks else frozen_before_check)


def newest(store: Store) -> int:
    """Return the highest token that has written to the history."""
    store.begin()
    ((token,),) = store.run("SELECT MAX(token) FROM history")
    store.rollback()
    return int(token or 0)
