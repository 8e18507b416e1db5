"""What tasks can do with the locks of fencedlock.asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.asyncio import FairLock, Lock, RLock
from tests.asyncio.conftest import eventually, waiting
from tests.servers import LockServer

CLASSES = [Lock, RLock, FairLock]


@pytest.mark.parametrize("cls", CLASSES)
def test_tasks_exclude_each_other_and_threads(
    cls: type, client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    inside = most = 0

    async def visit(lock: Any) -> int:
        nonlocal inside, most
        async with lock as token:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            return int(token)

    async def main() -> list[int]:
        one, other = cls(name, client=client), cls(name, client=client)
        tokens = await asyncio.gather(*(visit(one if i % 2 else other) for i in range(20)))

        def by_thread() -> int:
            nonlocal most
            with getattr(client, cls.__name__)(name) as token:
                most += inside  # nobody else may be inside
                return int(token)

        async with one:
            thread = asyncio.create_task(asyncio.to_thread(by_thread))
            await waiting(one, 1)
        return [*tokens, await thread]

    tokens = asyncio.run(main())
    assert most == 1
    assert len(set(tokens)) == 21
    assert backend.leftovers(name) == set()


def test_an_rlock_is_reentrant_for_its_task_alone(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        async with lock as token:
            async with lock as again:
                assert token == again == lock.token
                assert lock.depth == 2
                await asyncio.to_thread(_eventually_count, client, name, 2)
            assert lock.depth == 1
            await asyncio.to_thread(_eventually_count, client, name, 1)

            async def child() -> None:
                assert not lock.owned()
                assert not await lock.acquire(False)
                with pytest.raises(fencedlock.NotOwnedError, match="only the task that took it"):
                    lock.release()
                with pytest.raises(fencedlock.NotOwnedError):
                    _ = lock.token

            # A child task inherits the context, but not the lock.
            await asyncio.create_task(child(), context=contextvars.copy_context())
            assert await asyncio.to_thread(client.RLock(name).acquire, False) is False
        assert not await lock.locked()

    asyncio.run(main())


def _eventually_count(client: fencedlock.Client, name: str, count: int) -> None:
    while client.inspect(name).count != count:
        pass


def test_releases_that_nobody_awaits_are_sent_all_the_same(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        for _ in range(3):
            assert await lock.acquire()
            assert await lock.acquire()
            lock.release()
            lock.release()
            assert not lock.owned()
        other = Lock(name, client=client)
        assert await other.acquire(timeout=5)
        other.release()

    asyncio.run(main())
    with client.RLock(name).within(5):
        pass


def test_a_release_may_be_awaited_by_several_and_in_any_order(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        async with lock:
            pass
        await lock.acquire()
        await lock.acquire()
        nested, last = lock.release(), lock.release()

        async def wait(release: Any) -> None:
            await release

        await asyncio.gather(wait(last), wait(nested), wait(last), wait(last))
        await last
        assert not await lock.locked()

    asyncio.run(main())


def test_an_acquire_looks_whether_it_is_nested_when_it_begins(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        first, second = lock.acquire(), lock.acquire()
        assert await first
        assert await second
        assert lock.depth == 2
        third = lock.acquire()
        await lock.release()
        await lock.release()
        assert await third
        assert lock.depth == 1
        await lock.release()

    asyncio.run(main())


def test_a_statement_that_ends_after_a_loss_says_so_whoever_held_the_lock_since(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = Lock(name, client=client)
        with pytest.raises(fencedlock.LockLostError):
            async with lock:
                lost = lock.lost
                await asyncio.to_thread(client.force_release, name)
                with pytest.raises(fencedlock.LockLostError):
                    await lock.renew()
                assert lost.is_set()
                await asyncio.create_task(_take_and_release(lock))

    asyncio.run(main())


async def _take_and_release(lock: Lock) -> None:
    async with lock:
        pass


def test_a_lock_belongs_to_its_handle(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = Lock(name, client=client)

        async def take() -> fencedlock.FencingToken:
            await lock.acquire()
            return lock.token

        token = await asyncio.create_task(take())
        assert lock.token == token
        assert not await lock.acquire(timeout=0.5)
        await asyncio.create_task(_release(lock))
        with pytest.raises(fencedlock.NotOwnedError, match="release unlocked lock"):
            lock.release()
        assert await lock.acquire(False)
        lock.release()

    asyncio.run(main())


async def _release(lock: Lock) -> None:
    await lock.release()


@pytest.mark.parametrize("cls", CLASSES)
def test_waiters_of_a_fair_lock_are_served_in_the_order_in_which_they_asked(
    cls: type, client: fencedlock.Client, name: str
) -> None:
    if cls is RLock:
        pytest.skip("its order is not defined")
    order: list[int] = []

    async def visit(number: int) -> None:
        async with cls(name, client=client):
            order.append(number)

    async def main() -> None:
        async with cls(name, client=client) as _:
            tasks = [asyncio.create_task(visit(number)) for number in range(30)]
            await waiting(cls(name, client=client), 30)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == list(range(30))


def test_the_first_tasks_of_a_loop_stand_in_the_order_in_which_they_asked(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    backend: LockServer,
    name: str,
) -> None:
    """Some ask before the channel for doorbells is open, and others after that."""
    holder, order = connect(backend.url, ttl=10).RLock(name), []

    async def visit(number: int) -> None:
        async with FairLock(name, client=client):
            order.append(number)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(visit(number))
                await asyncio.sleep(0.0005)
            await waiting(FairLock(name, client=client), 100)
            released.set()

    released = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with holder:
            held.set()
            released.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    asyncio.run(main())
    thread.join()
    assert order == list(range(100))


def test_the_owner_is_the_task_that_calls_acquire(client: fencedlock.Client, name: str) -> None:
    """asyncio.wait_for() and gather() await in tasks of their own, which end at once."""

    async def main() -> None:
        lock, other = RLock(name, client=client), RLock(f"{name}/other", client=client)
        assert await asyncio.wait_for(lock.acquire(), 5)
        assert lock.owned()
        assert all(await asyncio.gather(lock.acquire(), other.acquire()))
        assert (lock.depth, other.depth) == (2, 1)
        await lock.release()
        await lock.release()
        await other.release()

    asyncio.run(main())


def test_a_timeout_and_a_try_leave_nothing(
    client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    async def main() -> None:
        lock, other = FairLock(name, client=client), Lock(name, client=client)
        async with other:
            assert not await lock.acquire(False)
            assert not await lock.acquire(timeout=0)
            assert not await lock.acquire(timeout=0.5)
            assert (await lock.info()).waiters == ()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await lock.acquire()
            await waiting(lock, 0)
            with pytest.raises(fencedlock.AcquireTimeoutError, match=r"not free within 0.5 s"):
                async with lock.within(0.5):
                    pass
        async with lock.within(5) as token:
            assert lock.token == token

    asyncio.run(main())
    assert backend.leftovers(name) <= {":withdrawn"}


def test_what_has_to_be_awaited_says_so(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        with pytest.raises(TypeError, match="await it"):
            bool(locked := lock.locked())
        assert await locked is False
        await lock.acquire()
        renewal = lock.renew(20)
        with pytest.raises(TypeError, match="await it"):
            assert not renewal
        await renewal
        assert lock.remaining() > 10
        release = lock.release()
        with pytest.raises(TypeError, match="await it"):
            assert not release
        await release

    asyncio.run(main())


def test_arguments_are_checked_when_the_call_is_made(client: fencedlock.Client, name: str) -> None:
    lock = RLock(name, client=client)
    with pytest.raises(ValueError, match="can't specify a timeout"):
        _ = lock.acquire(False, 5)
    with pytest.raises(ValueError, match="non-negative"):
        _ = lock.acquire(timeout=-2)
    with pytest.raises(fencedlock.ConfigurationError, match="ttl"):
        RLock(name, client=client, ttl=0)
    with pytest.raises(RuntimeError, match="no running event loop"):
        lock.acquire().send(None)


def test_keep_closes_the_lock(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        await lock.acquire()
        await lock.acquire()
        with pytest.raises(fencedlock.ConfigurationError, match="held 2 times"):
            lock.release(keep=1)
        await lock.release()
        await lock.release(keep=1)
        assert not await lock.acquire(False)
        assert await lock.acquire(timeout=20)
        assert not lock.abandoned
        lock.release()

    asyncio.run(main())


def test_a_lock_that_is_lost_says_so(client: fencedlock.Client, name: str) -> None:
    told: list[str] = []

    async def on_lost(lost: RLock, reason: str) -> None:
        assert asyncio.get_running_loop() is loops[0]
        told.append(reason)

    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        lock = RLock(name, client=client, on_lost=on_lost)
        assert not lock.lost.is_set()
        await lock.acquire()
        lost = lock.lost
        watcher = asyncio.create_task(lock.lost.wait())
        await asyncio.to_thread(client.force_release, name)
        with pytest.raises(fencedlock.LockLostError, match="was lost while held"):
            await lock.release()
        await asyncio.wait_for(lost.wait(), 5)
        await asyncio.wait_for(watcher, 5)
        await eventually(lambda: asyncio.sleep(0, told))

        await lock.acquire()
        await asyncio.to_thread(client.force_release, name)
        with pytest.raises(fencedlock.LockLostError):
            await lock.acquire()
        with pytest.raises(fencedlock.LockLostError):
            lock.ensure_held()
        with pytest.raises(KeyError) as raised:
            async with RLock(f"{name}/2", client=client):
                await asyncio.to_thread(client.force_release, f"{name}/2")
                raise KeyError
        assert "was lost while held" in raised.value.__notes__[0]

    asyncio.run(main())
    assert len(told) >= 1


def test_a_body_is_cancelled_when_the_lease_is_lost(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(fencedlock.LockLostError, match="was lost while held"):
            async with lock.cancelling() as token:
                assert lock.token == token
                await asyncio.to_thread(client.force_release, name)
                renewal = lock.renew()
                await asyncio.wait((asyncio.ensure_future(_swallow(renewal)),))
                await asyncio.sleep(60)
        assert task.cancelling() == 0
        async with lock.cancelling():  # it is a new statement, and nothing is lost
            await asyncio.sleep(0)
        assert not await lock.locked()

    asyncio.run(main())


async def _swallow(answer: Any) -> None:
    with pytest.raises(fencedlock.LockLostError):
        await answer


def test_a_cancellation_by_others_stays_one(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        inside = asyncio.Event()

        async def body() -> None:
            async with lock.cancelling():
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert await lock.acquire(timeout=5)
        lock.release()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), lock.cancelling():
                await asyncio.sleep(60)

    asyncio.run(main())


def test_a_task_that_waits_for_the_thread_of_its_loop_is_told(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        assert not await lock.acquire(False)
        with pytest.raises(fencedlock.WouldDeadlockError, match="held by thread 'MainThread'"):
            await lock.acquire()
        with pytest.raises(fencedlock.WouldDeadlockError, match="held by thread 'MainThread'"):
            await Lock(name, client=client).acquire()
        assert lock.token == token  # the thread's hold is around all that its loop does

    with client.RLock(name) as token:
        asyncio.run(main())


def test_a_task_that_ends_while_holding_has_lost_the_lock(
    client: fencedlock.Client, name: str
) -> None:
    reasons: list[str] = []

    async def main() -> None:
        lock = RLock(name, client=client, ttl=1, on_lost=lambda _, reason: reasons.append(reason))
        await asyncio.create_task(_take(lock))
        await eventually(lambda: asyncio.sleep(0, reasons))

    asyncio.run(main())
    assert reasons == ["its task ended without a release"]
    with client.RLock(name).within(20):
        pass


async def _take(lock: RLock) -> None:
    await lock.acquire()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_handle_can_be_copied_and_shown(cls: type, client: fencedlock.Client, name: str) -> None:
    lock = cls(name, client=client, ttl=7)
    assert copy.copy(lock) is copy.deepcopy(lock) is lock
    twin = pickle.loads(pickle.dumps(lock))
    assert (type(twin), twin.name, twin._client) == (cls, name, client)
    assert f"<unlocked fencedlock.asyncio.{cls.__name__} object name={name!r}" in repr(lock)


def test_a_closed_client_ends_the_waiting(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock, other = FairLock(name, client=client), Lock(name, client=client)
        await other.acquire()
        waiter = asyncio.create_task(_take(lock))
        await waiting(lock, 1)
        await client.aclose()
        with pytest.raises(fencedlock.AcquireCancelledError, match="its client was closed"):
            await waiter
        with pytest.raises(fencedlock.ConfigurationError, match="closed"):
            await lock.acquire()
        assert client._table.sessions == {}

    asyncio.run(main())
