"""Lock belongs to its handle: any thread may release it, and two handles exclude each other."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer


def in_thread(action: Callable[[], object]) -> None:
    """Do this in another thread, and wait for it."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


def test_another_thread_may_release(client: fencedlock.Client, other: Contender, name: str) -> None:
    lock = client.Lock(name)
    assert lock.acquire()
    token = lock.token
    assert other.ask("acquire", name, False) is False
    in_thread(lock.ensure_held)
    in_thread(lock.release)
    assert other.ask("acquire", name) is True
    assert other.ask("token", name) > token
    with pytest.raises(fencedlock.NotOwnedError, match="release unlocked lock"):
        lock.release()


def test_handles_exclude_each_other_in_one_thread(client: fencedlock.Client, name: str) -> None:
    one, two = client.Lock(name), client.Lock(name)
    with one:
        assert not two.acquire(False)
        assert not one.acquire(timeout=0.05)
        with pytest.raises(fencedlock.NotOwnedError, match="another handle of this process"):
            two.release()
    with two:
        assert two.locked()
        assert one.locked()


def test_it_excludes_the_reentrant_locks_of_its_name(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    with client.Lock(name):
        assert not client.RLock(name).acquire(False)
        assert other.ask("acquire", name, False) is False
    with client.RLock(name):
        assert not client.Lock(name).acquire(False)


def test_a_second_acquire_waits_until_somebody_releases(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.Lock(name)
    lock.acquire()
    first = lock.token
    waiter = threading.Thread(target=lock.acquire)
    waiter.start()
    eventually(lambda: lock.info().waiters)
    lock.release()
    waiter.join()
    assert lock.token > first
    lock.release()


def test_it_ends_with_its_handle(
    client: fencedlock.Client, other: Contender, backend: LockServer, name: str
) -> None:
    kept = client.Lock(name)
    lock = client.Lock(name)
    lock.acquire()
    with pytest.warns(ResourceWarning, match="was collected"):
        del lock
        gc.collect()
    assert other.ask("acquire", name, timeout=30) is True
    other.ask("release", name)
    del kept
    assert backend.leftovers(name) == set()


def test_a_copy_is_the_same_handle_and_a_pickle_is_another(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.Lock(name)
    assert copy.copy(lock) is copy.deepcopy(lock) is lock
    other = pickle.loads(pickle.dumps(lock))
    with lock:
        assert not other.acquire(False)


def test_a_lost_hold_does_not_end_that_of_the_next_thread(
    client: fencedlock.Client, name: str
) -> None:
    lock, inside, leave = client.Lock(name), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            inside.set()
            leave.wait()

    first = threading.Thread(target=pytest.raises, args=(fencedlock.LockLostError, hold))
    first.start()
    inside.wait()
    lost = lock.lost
    client.force_release(name)
    with pytest.raises(fencedlock.LockLostError):
        lock.renew()
    assert lost.is_set()
    lock.acquire()  # another thread's now
    leave.set()
    first.join()
    lock.ensure_held()
    assert client.inspect(name).token == int(lock.token)
    lock.release()


def test_a_condition_works_on_it(client: fencedlock.Client, name: str) -> None:
    condition, heard = threading.Condition(cast("Any", client.Lock(name))), []

    def listen() -> None:
        with condition:
            heard.append(condition.wait(30))

    listener = threading.Thread(target=listen)
    listener.start()
    eventually(lambda: condition._waiters)  # type: ignore[attr-defined]
    with condition:
        condition.notify()
    listener.join()
    assert heard == [True]
