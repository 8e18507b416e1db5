"""FairLock grants the lock in the order of arrival, and dead waiters do not delay others."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer

PROMPT_SECONDS = 0.1
"""How soon a waiter gets the lock after the server knows that it is free."""


def has_waiters(client: fencedlock.Client, name: str, count: int) -> bool:
    return len(client.inspect(name).waiters) == count


def kill_first_waiter(
    backend: LockServer, client: fencedlock.Client, name: str, doomed: Contender
) -> None:
    """Kill the first waiter, and wait until the server has noticed.

    Before that, the server may still grant the lock to it.
    """
    (waiter, *_) = client.inspect(name).waiters
    doomed.kill()
    backend.wait_until_gone(waiter)


def queue_up(
    client: fencedlock.Client, name: str, *contenders: Contender, **options: float
) -> None:
    """Let each contender wait for the lock, in this order."""
    for each in contenders:
        longer = len(client.inspect(name).waiters) + 1
        each.ask("make", name, "FairLock", **options)
        each.tell("acquire", name)
        eventually(partial(has_waiters, client, name, longer))


def test_fifty_waiters_in_five_processes_are_served_in_the_order_of_the_queue(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    crowds = [contender("process", client) for _ in range(5)]
    with client.FairLock(name):
        for crowd in crowds:
            crowd.tell("crowd", name, 10)
        queue = [
            waiter.owner
            for waiter in eventually(
                lambda: len(client.inspect(name).waiters) == 50 and client.inspect(name).waiters
            )
        ]
    served = [visit for crowd in crowds for visit in crowd.answer(60)]
    assert [owner for _, owner in sorted(served)] == queue


def test_waiters_are_served_in_order(
    kind: str, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    line = [contender(kind, client) for _ in range(4)]
    with client.FairLock(name):
        queue_up(client, name, *line)
    for served, each in enumerate(line):
        assert each.answer() is True
        assert not any(later.answered() for later in line[served + 1 :])
        each.ask("release", name)


def test_a_killed_waiter_delays_nobody(
    backend: LockServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    doomed, next_one = contender("process", client), contender("thread", client)
    lock = client.FairLock(name)
    with lock:
        queue_up(client, name, doomed, next_one)
        kill_first_waiter(backend, client, name, doomed)
        released = time.monotonic()
    assert next_one.answer() is True
    assert time.monotonic() - released < backend.dead_waiter_seconds


def test_a_killed_holder_delays_by_its_remaining_lease(
    backend: LockServer,
    client: fencedlock.Client,
    kind: str,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    doomed, next_one = contender("process", client), contender(kind, client)
    doomed.ask("make", name, "FairLock", ttl=1)
    assert doomed.ask("acquire", name)
    queue_up(client, name, next_one)
    doomed.kill()
    ends_at = time.monotonic() + client.inspect(name).remaining
    assert next_one.answer() is True
    assert time.monotonic() - ends_at < backend.expiry_seconds
    assert next_one.ask("abandoned", name) is True


def test_a_holder_with_a_shorter_lease_than_its_waiter_delays_by_its_own(
    backend: LockServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    first, doomed, next_one = (
        contender("thread", client),
        contender("process", client),
        contender("thread", client),
    )
    first.ask("make", name, "FairLock")
    assert first.ask("acquire", name)
    queue_up(client, name, doomed, ttl=0.5)
    queue_up(client, name, next_one, ttl=30)
    first.ask("release", name)
    assert doomed.answer() is True
    doomed.kill()
    ends_at = time.monotonic() + client.inspect(name).remaining
    assert next_one.answer() is True
    assert time.monotonic() - ends_at < backend.expiry_seconds


def test_a_frozen_waiter_delays_by_no_more_than_its_own_deadline(
    backend: LockServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    frozen, next_one = contender("process", client), contender("thread", client)
    with client.FairLock(name):
        queue_up(client, name, frozen, ttl=1)
        queue_up(client, name, next_one, ttl=1)
        frozen.freeze()
        deadline = time.monotonic() + client.inspect(name).waiters[0].remaining
    assert next_one.answer() is True
    assert time.monotonic() - deadline < backend.expiry_seconds
    next_one.tell("release", name)
    frozen.thaw()
    assert frozen.answer() is True  # its grant had lapsed, so it asked again


def test_a_waiter_with_a_short_lease_costs_a_long_one_neither_place_nor_time(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    patient, brief, last = (
        contender("thread", client),
        contender("process", client),
        contender("thread", client),
    )
    with client.FairLock(name):
        queue_up(client, name, patient, ttl=30)
        place = client.inspect(name).waiters[0].owner
        queue_up(client, name, brief, ttl=0.3)
        brief_place = client.inspect(name).waiters[1].owner
        brief.kill()
        eventually(
            lambda: brief_place not in {waiter.owner for waiter in client.inspect(name).waiters}
        )
        last.ask("make", name, "FairLock", ttl=30)
        last.tell("acquire", name)
        eventually(lambda: len(client.inspect(name).waiters) == 2)
        assert client.inspect(name).waiters[0].owner == place
        released = time.monotonic()
    assert patient.answer() is True
    assert time.monotonic() - released < PROMPT_SECONDS
    assert not last.answered()
    patient.ask("release", name)
    assert last.answer() is True


@pytest.mark.parametrize("cls", ["RLock", "FairLock"])
def test_waiters_learn_of_a_lock_that_vanished_with_its_data(
    cls: str,
    backend: LockServer,
    client: fencedlock.Client,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    """If the queue is wiped, its waiters join it again."""
    waiter = contender("thread", client)
    waiter.ask("make", name, cls, ttl=0.5)
    with pytest.raises(fencedlock.LockLostError), client.RLock(name, ttl=0.5):
        waiter.tell("acquire", name)
        eventually(lambda: client.inspect(name).waiters)
        backend.wipe(name)
        assert waiter.answer() is True


def test_a_dead_waiter_does_not_make_a_clean_release_look_abandoned(
    backend: LockServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    doomed, lock = contender("process", client), client.FairLock(name)
    with lock:
        queue_up(client, name, doomed)
        kill_first_waiter(backend, client, name, doomed)
    with lock:
        assert lock.abandoned is False
