"""Tasks detach and attach holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock import LockLostError, NotOwnedError
from fencedlock.asyncio import FairLock, Lock, RLock
from tests.asyncio.conftest import eventually
from tests.servers import LockServer

CLASSES = pytest.mark.parametrize("cls", [RLock, FairLock, Lock])


async def free(lock: Any) -> None:
    """Wait until nobody holds the lock."""

    async def is_free() -> bool:
        return not (await lock.info()).locked

    await eventually(is_free)


@CLASSES
def test_a_statement_whose_body_detaches_it_does_not_release_it(
    cls: Any, client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    async def main() -> None:
        lock = cls(name, client=client)
        async with lock as token:
            secret = await lock.detach()
            assert not lock.owned()
            with pytest.raises(NotOwnedError):
                lock.release()
            with pytest.raises(NotOwnedError):
                lock.detach()
        assert (await lock.info()).detached
        async with lock.attaching(secret) as same:
            assert same == token
            assert lock.depth == 1
            secret = await lock.detach()
        async with lock.attaching(secret):
            pass
        await free(lock)
        async with lock.within(5):
            secret = await lock.detach()
        async with cls(name, client=client).attaching(secret):
            with pytest.raises(NotOwnedError):
                await cls(name, client=client).attach(secret)
        async with lock.cancelling():
            secret = await lock.detach()
        await lock.attach(secret)
        await lock.release()
        await free(lock)
        assert backend.leftovers(name) == set()

    asyncio.run(main())


def test_threads_and_tasks_pass_it_to_each_other(client: fencedlock.Client, name: str) -> None:
    blocking = client.RLock(name)
    blocking.acquire()
    token, secret = blocking.token, blocking.detach()

    async def main(secret: str) -> str:
        lock = RLock(name, client=client)
        await lock.attach(secret)
        assert lock.token == token
        await lock.acquire()
        with pytest.raises(fencedlock.ConfigurationError, match="held 2 times"):
            lock.detach()
        await lock.release()
        return await lock.detach(ttl=60)

    secret = asyncio.run(main(secret))
    assert client.inspect(name).remaining > 50
    with blocking.attaching(secret) as same:
        assert same == token
    assert not client.inspect(name).locked


def test_the_owner_is_the_task_that_calls_attach(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        await lock.acquire()
        secret = await lock.detach()
        await asyncio.wait_for(lock.attach(secret), 60)  # 3.11 awaits it in a task of its own
        assert lock.owned()
        await lock.release()
        await lock.acquire()
        with pytest.raises(NotOwnedError, match="holds lock"):
            await lock.attach(secret)
        await lock.release()
        with pytest.raises(NotOwnedError, match="can be attached with this secret"):
            await lock.attach(secret)

    asyncio.run(main())


@CLASSES
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_cancelled_detach_releases_the_lock(
    cls: Any,
    moment: str,
    client: fencedlock.Client,
    backend: LockServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has the secret then."""
    bound = client._table.resource(name).bound
    began, go_on = threading.Event(), threading.Event()
    detach = type(bound).detach

    def slow(*arguments: Any) -> Any:
        if moment == "before":
            began.set()
            go_on.wait(60)
        answer = detach(*arguments)
        if moment == "after":
            began.set()
            go_on.wait(60)
        return answer

    async def main() -> None:
        lock = cls(name, client=client)

        async def detaches() -> None:
            async with lock:
                if moment == "during":
                    task = asyncio.current_task()
                    assert task is not None
                    asyncio.get_running_loop().call_soon(task.cancel)
                await lock.detach(ttl=600)

        with monkeypatch.context() as patch:
            patch.setattr(type(bound), "detach", slow)
            task = asyncio.create_task(detaches())
            if moment != "during":
                await asyncio.to_thread(began.wait, 60)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await free(lock)
        assert await lock.acquire(timeout=60)
        await lock.release()
        assert backend.leftovers(name) <= {":withdrawn"}

    asyncio.run(main())


def test_a_server_that_is_away_is_asked_again(
    new_server: Callable[[], Any], connect: Callable[..., Any], name: str
) -> None:
    server = new_server()
    client = connect(server.url, ttl=30, socket_timeout=0.2)

    async def main() -> None:
        lock, other = Lock(name, client=client), Lock(name, client=client)
        await lock.acquire()
        token, secret = lock.token, await lock.detach(ttl=60)
        server.freeze()
        task = asyncio.create_task(other.attach(secret))

        async def is_away() -> bool:
            return client._table.outage.since is not None

        await eventually(is_away)
        server.thaw()
        await task
        assert other.token == token
        client.force_release(name)
        with pytest.raises(LockLostError):
            await other.detach()
        with pytest.raises(LockLostError):
            await other.release()

    asyncio.run(main())


@CLASSES
def test_statements_around_and_inside_of_an_attached_hold(
    cls: Any, client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = cls(name, client=client)
        async with lock:
            async with lock.attaching(await lock.detach()):
                assert lock.depth == 1
            assert not lock.owned()
        await free(lock)
        async with lock:
            await lock.attach(await lock.detach())
        assert lock.depth == 1  # the statement has released nothing
        await lock.release()
        await free(lock)
        assert not lock._entered_holds

    asyncio.run(main())


def test_a_statement_after_a_loss_releases_what_its_task_has_acquired_since(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        async with lock:
            await asyncio.to_thread(client.force_release, name)
            with pytest.raises(LockLostError):
                await lock.release()
            await lock.acquire()
        assert not lock.owned()
        await free(lock)

    asyncio.run(main())


def test_of_two_tasks_only_one_attaches_it(client: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = Lock(name, client=client)
        await lock.acquire()
        secret = await lock.detach()
        results = await asyncio.gather(
            lock.attach(secret), lock.attach(secret), return_exceptions=True
        )
        assert sorted(map(type, results), key=str) == [type(None), NotOwnedError]
        await lock.release()
        await free(lock)

    asyncio.run(main())


def test_another_task_tries_again_after_one_was_cancelled(
    client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        await lock.acquire()
        secret = await lock.detach(ttl=60)
        task = asyncio.create_task(lock.attach(secret))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)  # the thread of the first attempt may be on its way
        await lock.attach(secret)
        await lock.release()
        await free(lock)

    asyncio.run(main())


def test_a_detach_that_is_cancelled_at_the_end_of_its_loop_is_given_up(
    client: fencedlock.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = client._table.resource(name).bound
    detach, go_on = type(bound).detach, threading.Event()

    def slow(*arguments: Any) -> Any:
        go_on.wait(60)
        return detach(*arguments)

    async def main() -> None:
        async with lock:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lock.detach(ttl=600), 0.05)

    lock = Lock(name, client=client)
    monkeypatch.setattr(type(bound), "detach", slow)
    asyncio.run(main())
    go_on.set()
    blocking = client.FairLock(name)
    assert blocking.acquire(timeout=60)
    blocking.release()
