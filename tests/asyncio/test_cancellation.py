"""A cancelled acquire, and a cancelled release, leave nothing, wherever the cancellation comes.

``FENCEDLOCK_EXAMPLES=1000 pytest -s tests/asyncio/test_cancellation.py`` tries more often, and
shows how long the next waiter waited.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.asyncio import FairLock, Lock, RLock
from tests.asyncio.conftest import eventually, waiting
from tests.servers import LockServer

TIMES = int(os.environ.get("FENCEDLOCK_EXAMPLES", "200"))
LATEST_SECONDS = 5.0
"""The next waiter has the lock by then. If the lock were held by nobody, it would wait for 10 s."""


class Scene:
    """A lock, whose holders are counted, and a victim that is cancelled."""

    def __init__(self, victim: Any, other: Any) -> None:
        self.victim = victim
        self.other = other
        self.inside = 0
        self.most = 0

    async def body(self) -> None:
        async with self.victim:
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await asyncio.sleep(0)
            finally:
                self.inside -= 1

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.body())


async def before_the_first_packet(scene: Scene) -> None:
    task = scene.start()
    for _ in range(random.randrange(3)):
        await asyncio.sleep(0)
    await cancelled(task)


async def between_packet_and_answer(scene: Scene) -> None:
    task = scene.start()
    await asyncio.sleep(random.uniform(0, 0.002))
    await cancelled(task)


async def between_answer_and_doorbell(scene: Scene) -> None:
    async with scene.other:
        task = scene.start()
        await waiting(scene.other, 1)
        await cancelled(task)


async def doorbell_and_then_cancellation(scene: Scene) -> None:
    await scene.other.acquire()
    task = scene.start()
    await waiting(scene.other, 1)
    scene.other.release()
    await asyncio.sleep(random.uniform(0, 0.001))
    await cancelled(task)


async def cancellation_and_then_doorbell(scene: Scene) -> None:
    await scene.other.acquire()
    task = scene.start()
    await waiting(scene.other, 1)
    task.cancel()
    scene.other.release()
    await cancelled(task)


async def in_a_nested_acquire(scene: Scene) -> None:
    if isinstance(scene.victim, Lock):
        pytest.skip("it is not reentrant")
    begun = asyncio.Event()

    async def nest() -> None:
        async with scene.victim:
            begun.set()
            async with scene.victim:
                assert scene.victim.depth == 2
            assert scene.victim.depth == 1

    task = asyncio.create_task(nest())
    await begun.wait()
    await asyncio.sleep(random.uniform(0, 0.001))
    await cancelled(task)


async def in_the_release(scene: Scene) -> None:
    leaving = asyncio.Event()

    async def leave() -> None:
        async with scene.victim:
            leaving.set()

    task = asyncio.create_task(leave())
    await leaving.wait()
    await asyncio.sleep(random.choice((0, random.uniform(0, 0.001))))
    await cancelled(task)


async def by_a_timeout(scene: Scene) -> None:
    async with scene.other:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.005)):
                await scene.body()


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()


CASES: list[Callable[[Scene], Awaitable[None]]] = [
    before_the_first_packet,
    between_packet_and_answer,
    between_answer_and_doorbell,
    doorbell_and_then_cancellation,
    cancellation_and_then_doorbell,
    in_a_nested_acquire,
    in_the_release,
    by_a_timeout,
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cls", [Lock, FairLock, RLock])
def test_nothing_is_left(
    cls: type,
    case: Callable[[Scene], Awaitable[None]],
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    backend: LockServer,
    server_kind: str,
    name: str,
) -> None:
    second, waits = connect(backend.url, ttl=10), []

    async def main() -> None:
        scene = Scene(cls(name, client=client), cls(name, client=second))
        for _ in range(TIMES):
            await case(scene)
            begun = time.monotonic()
            assert await scene.other.acquire(timeout=LATEST_SECONDS)
            waits.append(time.monotonic() - begun)
            assert scene.inside == 0
            await scene.other.release()
        assert scene.most <= 1

        async def is_tidy() -> bool:
            return backend.leftovers(name) <= {":withdrawn"}

        await eventually(is_tidy)

    asyncio.run(main())
    assert client._table.claims == {}
    assert client._table.heartbeat.holds() == []
    print(
        f"{server_kind} {cls.__name__} {case.__name__}: {TIMES} times, the next waiter waited "
        f"{1000 * sorted(waits)[len(waits) // 2]:.2f} ms, at most {1000 * max(waits):.1f} ms"
    )
