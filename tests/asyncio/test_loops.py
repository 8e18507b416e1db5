"""Locks in several loops, in loops that are blocked or end badly, and in other kinds of loops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fencedlock
from fencedlock.asyncio import FairLock, Lock, RLock
from tests.asyncio.conftest import eventually, waiting
from tests.conftest import eventually as eventually_here
from tests.servers import LockServer

TTL_SECONDS = 1.0

ROOT = Path(__file__).parents[2]


def test_a_lock_serves_one_loop_after_another(client: fencedlock.Client, name: str) -> None:
    locks = [cls(f"{name}/{cls.__name__}", client=client) for cls in (Lock, RLock, FairLock)]

    async def main() -> list[int]:
        tokens = []
        for lock in locks:
            async with lock as token:
                tokens.append(int(token))
        return tokens

    runs = [asyncio.run(main()) for _ in range(3)]
    assert runs == sorted(runs)
    assert client._table.sessions == {}


def test_loops_in_two_threads_exclude_each_other(client: fencedlock.Client, name: str) -> None:
    lock, inside, most = FairLock(name, client=client), 0, 0

    async def visit() -> None:
        nonlocal inside, most
        for _ in range(10):
            async with lock:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    async def crowd() -> None:
        await asyncio.gather(*(visit() for _ in range(5)))

    threads = [threading.Thread(target=lambda: asyncio.run(crowd())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_lock_is_held_by_its_handle_from_one_loop_to_the_next(
    client: fencedlock.Client, name: str
) -> None:
    lock = Lock(name, client=client)

    async def take() -> fencedlock.FencingToken:
        assert await lock.acquire()
        return lock.token

    async def give_back() -> None:
        await lock.release()

    token = asyncio.run(take())
    assert lock.token == token
    assert client.inspect(name).token == int(token)
    asyncio.run(give_back())
    assert not client.inspect(name).locked
    asyncio.run(take())
    lock.release()  # no loop runs, so the background does it
    eventually_here(lambda: not client.inspect(name).locked)


def test_a_blocked_loop_keeps_its_locks(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    short = connect(backend.url, ttl=TTL_SECONDS)

    async def main() -> None:
        async with RLock(name, client=short) as token:
            time.sleep(3 * TTL_SECONDS)  # noqa: ASYNC251 - it blocks the loop
            assert await asyncio.to_thread(client.RLock(name).acquire, False) is False
            assert client.inspect(name).token == int(token)

    asyncio.run(main())
    assert not client.inspect(name).locked


def test_the_waiters_of_a_blocked_loop_are_passed_over(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """They get the lock later, as if their connection had been cut."""
    short = connect(backend.url, ttl=TTL_SECONDS)
    blocked, go_on = threading.Event(), threading.Event()
    got: list[str] = []

    async def wait() -> None:
        lock = FairLock(name, client=short)
        task = asyncio.create_task(take(lock))
        await waiting(lock, 1)
        blocked.set()
        go_on.wait()
        await task

    async def take(lock: FairLock) -> None:
        async with lock:
            got.append("blocked")

    with client.FairLock(name) as _:
        loop = threading.Thread(target=lambda: asyncio.run(wait()))
        loop.start()
        blocked.wait()
        other = threading.Thread(target=lambda: _visit(client.FairLock(name), got))
        other.start()
        eventually_here(lambda: len(client.inspect(name).waiters) in (1, 2))
        begun = time.monotonic()
    other.join()
    waited = time.monotonic() - begun
    assert got == ["other"]
    # Its grant lasts until the server counts it as dead: one span after its last beat.
    assert waited < 20
    print(f"the next waiter had the lock after {waited:.2f} s, with a span of {TTL_SECONDS} s")
    go_on.set()
    loop.join()
    assert got == ["other", "blocked"]


def _visit(lock: fencedlock.FairLock, got: list[str]) -> None:
    with lock:
        got.append("other")


def test_a_loop_that_was_closed_without_a_shutdown_leaves_nothing(
    client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    loop = asyncio.new_event_loop()
    lock = RLock(name, client=client)
    held = loop.create_task(lock.acquire())
    loop.run_until_complete(held)
    waiter = loop.create_task(FairLock(name, client=client).acquire())
    loop.run_until_complete(waiting(lock, 1))
    waiter.cancel()
    loop.run_until_complete(asyncio.wait((waiter,)))
    loop.close()
    ended = weakref.ref(loop)
    del loop, held, waiter

    async def main() -> None:
        async with Lock(name, client=client):
            pass

    asyncio.run(main())
    assert len(client._table.sessions) == 0
    gc.collect()
    eventually_here(lambda: (gc.collect() and False) or ended() is None)
    eventually_here(lambda: backend.leftovers(name) <= {":withdrawn"})


def test_a_closed_client_closes_the_connections_of_a_loop_that_does_not_run(
    connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    client = connect(backend.url, ttl=10)
    loop = asyncio.new_event_loop()
    lock = FairLock(name, client=client)
    loop.run_until_complete(loop.create_task(_visit_by_task(lock)))
    assert client._table.sessions
    client.close()
    assert not client._table.sessions
    eventually_here(
        lambda: not any(thread.name == "fencedlock-inbox" for thread in threading.enumerate())
    )
    loop.close()


async def _visit_by_task(lock: Any) -> None:
    async with lock:
        pass


def test_a_loop_may_run_in_one_thread_after_another(client: fencedlock.Client, name: str) -> None:
    loop = asyncio.new_event_loop()
    lock = FairLock(name, client=client)
    held: Any = Lock(name, client=client)

    async def wait() -> None:
        await held.acquire()
        waiter = asyncio.create_task(_visit_by_task(lock))
        await waiting(lock, 1)
        held.release()
        await asyncio.wait_for(waiter, 20)

    for _ in range(3):
        thread = threading.Thread(target=lambda: loop.run_until_complete(wait()))
        thread.start()
        thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert not client._table.sessions


def test_on_lost_is_called_although_the_loop_is_closed(
    connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    client = connect(backend.url, ttl=1)
    told: list[str] = []
    lock = RLock(name, client=client, on_lost=lambda _, reason: told.append(reason))

    async def take() -> None:
        await lock.acquire()

    asyncio.run(take())
    eventually_here(lambda: told == ["its task ended without a release"])


@pytest.mark.parametrize("kind", ["uvloop", "eager tasks"])
def test_other_kinds_of_loops(kind: str, client: fencedlock.Client, name: str) -> None:
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
        make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    elif sys.version_info < (3, 12):
        pytest.skip("Python 3.11 has no eager tasks")
    else:

        def make() -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            loop.set_task_factory(asyncio.eager_task_factory)
            return loop

    async def visit(order: list[int], number: int) -> None:
        async with FairLock(name, client=client):
            order.append(number)

    async def main() -> None:
        for _ in range(3):
            order: list[int] = []
            async with Lock(name, client=client):
                visits = [asyncio.ensure_future(visit(order, number)) for number in range(10)]
                await waiting(Lock(name, client=client), 10)
            await asyncio.gather(*visits)
            assert order == list(range(10))
            task = asyncio.ensure_future(RLock(name, client=client).acquire())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            lock = Lock(name, client=client)
            assert await lock.acquire(timeout=5)
            await lock.release()

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())


PROGRAM = """
import asyncio, os, signal, sys
import fencedlock
from fencedlock.asyncio import FairLock, Lock, RLock

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in background jobs
client = fencedlock.connect(sys.argv[1], ttl=2)
name, how = sys.argv[2], sys.argv[3]
free = RLock(f"{name}/free", client=client)

async def wait():
    await FairLock(name, client=client).acquire()

async def main():
    held = Lock(name, client=client)
    async with held, free:
        waiters = [asyncio.create_task(wait()) for _ in range(3)]
        while len((await held.info()).waiters) != 3:
            await asyncio.sleep(0.001)
        if how == "error":
            raise SystemExit(3)
        if how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

if how == "stop":
    loop = asyncio.new_event_loop()
    task = loop.create_task(main())
    loop.run_forever()
    tasks = asyncio.all_tasks(loop)
    for each in tasks:
        each.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    loop.close()
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["error", "interrupt", "stop", "kill"])
def test_the_end_of_a_program_leaves_nothing_beyond_one_lease(
    how: str, client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, backend.url, name, how],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    codes = {"error": 3, "interrupt": -signal.SIGINT, "stop": 0, "kill": -signal.SIGKILL}
    assert ended.returncode in (codes[how], 1 if how == "interrupt" else codes[how]), ended.stderr
    for words in (
        "Task was destroyed",
        "Event loop is closed",
        "ResourceWarning",
        "never retrieved",
        "never awaited",
    ):
        assert words not in ended.stderr
    if how == "kill":
        with client.RLock(name).within(30):
            pass
    else:
        assert not client.inspect(name).locked
        assert backend.leftovers(name) <= {":withdrawn"}


def test_a_fork_leaves_the_loop_to_the_parent(
    client: fencedlock.Client, backend: LockServer, name: str
) -> None:
    code = f"""
import asyncio, os, sys, warnings
warnings.simplefilter("ignore")
import fencedlock
from fencedlock.asyncio import RLock
client = fencedlock.connect({backend.url!r}, ttl=5)
lock = RLock({name!r}, client=client)

async def main():
    async with lock as token:
        child = os.fork()
        if child == 0:
            os._exit(0 if not lock.owned() and client._table.sessions == {{}} else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        lock.ensure_held()
        assert (await lock.info()).token == int(token)
    async with lock:
        pass

async def in_child():
    async with RLock({name!r}, client=client):
        pass

asyncio.run(main())
child = os.fork()
if child == 0:
    asyncio.run(in_child())
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.stdout == "done\n", ended.stderr


def test_a_closed_client_leaves_nothing_of_busy_tasks(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """Neither of questions and releases that are under way, nor of releases that nobody awaits."""

    async def work(lock: Any) -> None:
        while True:
            async with lock:
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main(round_number: int) -> list[str]:
        busy = connect(backend.url, ttl=60)
        names = [f"{name}/{round_number}/{number}" for number in range(20)]
        tasks = [asyncio.create_task(work(RLock(each, client=busy))) for each in names]
        released = RLock(f"{name}/{round_number}/released", client=busy)
        await released.acquire()
        await asyncio.sleep(0.02)
        released.release()
        await busy.aclose()
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(done, fencedlock.FencedLockError)
        return [*names, released.name]

    for round_number in range(5):
        for each in asyncio.run(main(round_number)):
            assert not client.inspect(each).locked


def test_many_loops_leave_connections_to_the_heartbeat(
    connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    client, loops = connect(backend.url, ttl=2), 40
    everybody = threading.Barrier(loops)
    held: list[bool] = []

    async def hold(number: int) -> None:
        async with RLock(f"{name}/{number}", client=client) as _:
            await asyncio.to_thread(everybody.wait, 60)
            await asyncio.sleep(3)
            held.append(True)

    threads = [
        threading.Thread(target=lambda number=number: asyncio.run(hold(number)))
        for number in range(loops)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == loops


def test_callbacks_run_in_the_loop_of_the_holder(client: fencedlock.Client, name: str) -> None:
    loops: list[object] = []

    async def on_lost(_lock: RLock, _reason: str) -> None:
        loops.append(asyncio.get_running_loop())

    lock = RLock(name, client=client, on_lost=on_lost)

    async def attempt() -> None:
        assert not await lock.acquire(False)

    async def main() -> None:
        await lock.acquire()
        await asyncio.to_thread(lambda: asyncio.run(attempt()))
        await asyncio.to_thread(client.force_release, name)
        with pytest.raises(fencedlock.LockLostError):
            await lock.release()
        await eventually(lambda: asyncio.sleep(0, loops))
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())
