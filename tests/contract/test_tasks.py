"""The blocking locks in an event loop: each task is an owner, and none waits for its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer


async def in_task(action: Callable[[], Any]) -> Any:
    """What came of this in a task of its own."""

    async def run() -> Any:
        return action()

    return await asyncio.create_task(run(), name="the other task")


def test_tasks_that_hold_it_across_an_await_exclude_each_other(
    client: fencedlock.Client, name: str
) -> None:
    lock, inside, most = client.RLock(name), 0, 0

    async def work() -> str:
        nonlocal inside, most
        try:
            with lock, lock:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.02)
                inside -= 1
        except fencedlock.WouldDeadlockError:
            return "would deadlock"
        return "done"

    async def main() -> list[str]:
        return await asyncio.gather(*(work() for _ in range(5)))

    assert asyncio.run(main()) == ["done", *["would deadlock"] * 4]
    assert most == 1


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_another_task_may_try_but_neither_wait_nor_release(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.FairLock(name)

    async def main() -> None:
        with lock as token:
            assert await in_task(lambda: lock.acquire(False)) is False
            assert await in_task(lambda: lock.acquire(timeout=0)) is False
            with pytest.raises(fencedlock.WouldDeadlockError, match=r"held by task 'Task-\d+'"):
                await in_task(lambda: lock.acquire(timeout=5))
            with pytest.raises(fencedlock.NotOwnedError, match="only the task that took it"):
                await in_task(lock.release)
            assert lock.token == token
            assert lock.info().waiters == ()

    run(main())
    assert other.ask("acquire", name) is True


def test_a_thread_and_a_task_of_it_are_two_owners(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)

    async def main() -> None:
        assert not lock.acquire(False)
        with pytest.raises(fencedlock.WouldDeadlockError, match="held by thread 'MainThread'"):
            lock.acquire()
        with pytest.raises(fencedlock.NotOwnedError, match="only the thread that took it"):
            lock.release()
        assert not lock.owned()
        # But the thread's hold is around all that its loop does.
        assert lock.token == token
        lock.ensure_held()
        fencedlock.assert_held(name)
        assert lock.remaining() > 0

    with lock as token:
        run(main())


def test_other_threads_wait_for_a_task_and_it_for_them(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)

    async def main() -> None:
        def visit() -> bool:
            with lock:
                return True

        with lock:
            visitor = asyncio.create_task(asyncio.to_thread(visit))
            await asyncio.to_thread(eventually, lambda: lock.info().waiters)
        assert await visitor

    run(main())


def test_a_task_that_ends_while_holding_has_lost_the_lock(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    backend: LockServer,
    name: str,
) -> None:
    reasons: list[str] = []
    short = connect(backend.url, ttl=1, on_lost=lambda _, reason: reasons.append(reason))

    async def main() -> None:
        await in_task(short.RLock(name).acquire)

    kept = short.RLock(name)
    run(main())
    eventually(lambda: reasons == ["its task ended without a release"])
    with client.RLock(name):
        assert kept.locked()


def test_a_thread_that_waits_for_itself_by_another_client_is_told(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    backend: LockServer,
    name: str,
) -> None:
    second = connect(backend.url, ttl=10).RLock(name)
    with client.RLock(name):
        assert not second.acquire(False)
        with pytest.raises(fencedlock.WouldDeadlockError, match="by another client"):
            second.acquire()
        assert client.inspect(name).waiters == ()
    assert second.acquire()
    second.release()
