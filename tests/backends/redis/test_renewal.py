"""A manual renewal at the same time as a beat.

In whichever order they come, the holder never believes in a longer lease than the server keeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.backends.redis import lock as redis_lock
from fencedlock.backends.redis import scripts
from fencedlock.core.claims import Hold
from tests.conftest import eventually
from tests.proxy import Proxy
from tests.servers import RedisServer


class _Gate:
    """Stops the heartbeat's thread once, at a place where the system may interrupt any thread."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        if threading.current_thread().name == "fencedlock-heartbeat" and not self.reached.is_set():
            self.reached.set()
            self.opened.wait(20)


@pytest.fixture
def gate() -> _Gate:
    return _Gate()


@pytest.fixture
def wire(server: RedisServer, proxy: Callable[[RedisServer], Proxy]) -> Proxy:
    return proxy(server)


def _renewals(wire: Proxy) -> Callable[[], int]:
    """Return a function that returns the number of answers to renewals from now on."""
    answers: list[bytes] = []
    wire.reply_rule = lambda reply: answers.append(reply) if b"+renewed" in reply else None
    return lambda: len(answers)


def assert_believed(
    lock: fencedlock.RLock, client: fencedlock.Client, lease_seconds: float
) -> None:
    """Assert that the holder believes in about this lease, and in no more than the server keeps."""
    kept = client.inspect(lock.name).remaining
    believed = lock.remaining()
    assert believed <= kept + 0.1
    assert believed > lease_seconds - 1


@pytest.mark.parametrize(("before", "after"), [(60, 5), (5, 60)])
def test_a_beat_whose_answer_is_read_after_a_renewal(
    before: float,
    after: float,
    gate: _Gate,
    connect: Callable[..., fencedlock.Client],
    client: fencedlock.Client,
    wire: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    extend = Hold.extend

    def extend_later(hold: Hold, *arguments: Any) -> None:
        gate.pass_through()
        extend(hold, *arguments)
        if threading.current_thread().name == "fencedlock-heartbeat":
            extended.set()

    extended = threading.Event()
    monkeypatch.setattr(Hold, "extend", extend_later)
    remote = connect(wire.url, ttl=before)
    lock = remote.RLock(name)
    with lock:
        remote._table.heartbeat.add(lock._owned(), 0.0)
        assert gate.reached.wait(20)
        lock.renew(after)
        gate.opened.set()
        assert extended.wait(20)
        assert_believed(lock, client, after)


@pytest.mark.parametrize(("before", "after"), [(60, 5), (5, 60)])
def test_a_beat_that_is_packed_while_a_renewal_changes_the_lease(
    before: float,
    after: float,
    gate: _Gate,
    connect: Callable[..., fencedlock.Client],
    client: fencedlock.Client,
    wire: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The beat must not ask for the old lease with the number of the latest operation."""
    whole_ms = scripts.whole_ms

    def whole_ms_later(lease_seconds: float) -> int:
        gate.pass_through()
        return whole_ms(lease_seconds)

    monkeypatch.setattr(redis_lock, "whole_ms", whole_ms_later)
    remote = connect(wire.url, ttl=before)
    lock = remote.RLock(name)
    answered = _renewals(wire)
    with lock:
        remote._table.heartbeat.add(lock._owned(), 0.0)
        assert gate.reached.wait(20)
        lock.renew(after)
        answers = answered()
        gate.opened.set()
        eventually(lambda: answered() > answers)
        assert_believed(lock, client, after)
