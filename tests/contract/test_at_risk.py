"""What a holder hears while its lock is at risk: on_at_risk, on_safe and on_lost, in this order."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.runtime.holding import beat_failed
from tests.conftest import eventually
from tests.interrupts import Interrupt, TimeLimit
from tests.servers import LockServer, RedisServer

TTL_SECONDS = 3.0


class Watch:
    """Callbacks that write down what they are told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.remaining: list[float] = []
        self.threads: set[int] = set()

    def _tell(self, what: str, lock: Any) -> None:
        self.threads.add(threading.get_ident())
        self.told.append(f"{what} {lock.name}")

    def at_risk(self, lock: Any, remaining: float) -> None:
        self.remaining.append(remaining)
        self._tell("at risk", lock)

    def safe(self, lock: Any) -> None:
        self._tell("safe", lock)

    def lost(self, lock: Any, reason: str) -> None:
        assert "lease" in reason
        self._tell("lost", lock)

    @property
    def callbacks(self) -> dict[str, Callable[..., object]]:
        return {"on_at_risk": self.at_risk, "on_safe": self.safe, "on_lost": self.lost}


@pytest.mark.parametrize("cls", ["RLock", "FairLock", "Lock"])
@pytest.mark.parametrize("whose", ["handle", "client"])
def test_a_holder_hears_that_beats_fail_and_that_they_are_answered_again(
    cls: str,
    whose: str,
    new_server: Callable[[], Any],
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    server, watch = new_server(), Watch()
    of_client, of_handle = (watch.callbacks, {}) if whose == "client" else ({}, watch.callbacks)
    client = connect(server.url, ttl=20, **of_client)
    lock = getattr(client, cls)(name, ttl=TTL_SECONDS, **of_handle)
    with lock:
        for _ in range(2):
            told = len(watch.told)
            server.freeze()
            eventually(lambda: len(watch.told) > told)  # noqa: B023 - called in this turn
            assert watch.told[-1] == f"at risk {name}"
            assert 0 < watch.remaining[-1] < TTL_SECONDS
            lock.ensure_held()
            server.thaw()
            eventually(lambda: watch.told[-1] == f"safe {name}")
            lock.ensure_held()
    assert watch.told == [f"at risk {name}", f"safe {name}"] * 2
    assert len(watch.threads) == 1
    assert threading.get_ident() not in watch.threads
    assert server.leftovers(name) == set()


def test_a_holder_whose_lease_ends_hears_of_the_risk_first_and_of_no_safety(
    new_server: Callable[[], Any], connect: Callable[..., fencedlock.Client], name: str
) -> None:
    server, watch = new_server(), Watch()
    lock = connect(server.url, ttl=TTL_SECONDS, **watch.callbacks).RLock(name)
    lock.acquire()
    server.freeze()
    eventually(lambda: f"lost {name}" in watch.told)
    server.thaw()
    with pytest.raises(fencedlock.LockLostError):
        lock.release()
    eventually(lambda: server.leftovers(name) == set())
    assert watch.told == [f"at risk {name}", f"lost {name}"]


@pytest.mark.parametrize("ends", ["release", "close", "collect"])
def test_a_lock_that_is_released_at_risk_is_safe(
    ends: str, new_server: Callable[[], Any], connect: Callable[..., fencedlock.Client], name: str
) -> None:
    server, watch = new_server(), Watch()
    client = connect(server.url, ttl=TTL_SECONDS, socket_timeout=0.2, **watch.callbacks)
    lock = client.RLock(name)
    lock.acquire()
    server.freeze()
    eventually(lambda: watch.told == [f"at risk {name}"])
    if ends == "release":
        lock.release()
    elif ends == "close":
        client.close()
    else:
        with pytest.warns(ResourceWarning):
            del lock
            gc.collect()
    eventually(lambda: watch.told == [f"at risk {name}", f"safe {name}"])
    server.thaw()


def test_no_interrupt_of_a_renewal_leaves_its_holder_without_word(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    """A signal handler raises at each place at which Python may run it."""
    watch = Watch()
    lock = connect(server.url, ttl=1, **watch.callbacks).RLock(name)
    with lock:
        (hold,) = lock._settings.resource.holds.values()
        for number in range(1, 1000):
            told = len(watch.told)
            beat_failed(lock._settings.state, hold)
            interrupt = Interrupt(number, TimeLimit)
            try:
                interrupt.run(lock.renew)
            except TimeLimit:
                pass
            eventually(lambda: f"safe {name}" in watch.told[told:])  # noqa: B023 - as above
            if not interrupt.came:
                break
    assert number > 20


def test_a_nested_acquire_that_is_not_answered_tells_of_the_risk(
    new_server: Callable[[], Any], connect: Callable[..., fencedlock.Client], name: str
) -> None:
    server, watch = new_server(), Watch()
    # The first beat is due in 20 s.
    lock = connect(server.url, ttl=60, socket_timeout=0.2, **watch.callbacks).RLock(name)
    with lock:
        time.sleep(0.1)  # on etcd, a beat follows the grant
        server.freeze()
        with lock:
            eventually(lambda: watch.told == [f"at risk {name}"])
            server.thaw()
        eventually(lambda: watch.told == [f"at risk {name}", f"safe {name}"])


def test_a_lock_that_another_one_takes_by_force_is_lost_and_was_not_at_risk(
    backend: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    watch = Watch()
    lock = connect(backend.url, ttl=1, **watch.callbacks).RLock(name)
    lock.acquire()
    assert connect(backend.url).force_release(name) is not None
    eventually(lambda: watch.told == [f"lost {name}"])
    with pytest.raises(fencedlock.LockLostError):
        lock.release()


def test_a_failing_callback_does_not_keep_the_next_ones_from_being_called(
    new_server: Callable[[], Any],
    connect: Callable[..., fencedlock.Client],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    server, watch = new_server(), Watch()

    def fail(lock: Any, remaining: float) -> None:
        raise RuntimeError("this callback fails")

    lock = connect(server.url, ttl=20).RLock(
        name, ttl=TTL_SECONDS, on_at_risk=fail, on_safe=watch.safe
    )
    with lock:
        server.freeze()
        eventually(lambda: f"on_at_risk of lock {name!r} failed" in caplog.text)
        server.thaw()
        eventually(lambda: watch.told == [f"safe {name}"])


@pytest.mark.parametrize("kind", ["on_lost", "on_at_risk", "on_safe"])
def test_what_can_t_be_called_is_refused(
    kind: str, backend: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client, wrong = connect(backend.url), {kind: "print"}
    for cls in ("RLock", "FairLock", "Lock"):
        with pytest.raises(fencedlock.ConfigurationError, match=f"{kind} must be a function"):
            getattr(client, cls)(name, **wrong)
    with pytest.raises(fencedlock.ConfigurationError, match=f"{kind} must be a function"):
        connect(backend.url, **{kind: 1})


def test_callbacks_travel_with_a_pickled_lock(
    backend: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client = connect(backend.url, on_safe=repr)
    lock = client.RLock(name, on_at_risk=max)
    again = pickle.loads(pickle.dumps(lock))
    assert again._callbacks == lock._callbacks
    assert again._callbacks.on_at_risk is max
    assert pickle.loads(pickle.dumps(client))._table.callbacks.on_safe is repr
