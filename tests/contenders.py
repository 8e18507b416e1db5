"""Contenders: threads, processes or tasks that acquire and release locks as a test tells them."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fencedlock
import fencedlock.asyncio
from fencedlock.clock import now_seconds

_spawn = multiprocessing.get_context("spawn")


class Contender:
    """A thread, a process or a task that carries out orders.

    ``kind`` is "thread" or "task" (they use the given client; the task runs in a loop of its own)
    or "process" (it uses a client of its own, made from the pickle of the given one).
    """

    def __init__(self, kind: str, client: fencedlock.Client) -> None:
        self.kind = kind
        self._ours, theirs = _spawn.Pipe()
        if kind != "process":
            serve = _serve if kind == "thread" else _serve_by_a_task
            self._body: Any = threading.Thread(target=serve, args=(theirs, client), daemon=True)
        else:
            self._body = _spawn.Process(target=_serve, args=(theirs, client), daemon=True)
        self._body.start()
        if kind == "process":
            theirs.close()
        self.pid = self.ask("getpid")

    def tell(self, what: str, *args: Any, **options: Any) -> None:
        """Send an order without waiting until it is carried out."""
        self._ours.send((what, args, options))

    def answer(self, timeout: float = 60) -> Any:
        """Return the result of the oldest order whose result has not been returned yet.

        If the order raised an exception, it is raised here.
        """
        assert self._ours.poll(timeout), "the contender does not answer"
        error, result = self._ours.recv()
        if error is not None:
            raise error
        return result

    def answered(self, timeout: float = 0) -> bool:
        return self._ours.poll(timeout)

    def ask(self, what: str, *args: Any, **options: Any) -> Any:
        self.tell(what, *args, **options)
        return self.answer()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._body.join()

    def close(self) -> None:
        try:
            self._ours.send(None)
        except OSError:
            pass
        if self.kind == "process" and self._body.is_alive():
            self._body.join(5)
            self._body.kill()
            self._body.join()
        elif self.kind != "process":
            self._body.join(5)
        self._ours.close()


class _Orders:
    """The orders that a contender understands. It makes the locks by name and keeps them."""

    def __init__(self, client: fencedlock.Client) -> None:
        self.client = client
        self.locks: dict[str, fencedlock.RLock] = {}
        self.cancellation = fencedlock.Cancellation()

    def lock(self, name: str, cls: str = "RLock", **options: Any) -> fencedlock.RLock:
        if name not in self.locks:
            self.locks[name] = getattr(self.client, cls)(name, **options)
        return self.locks[name]

    def make(self, name: str, cls: str = "RLock", **options: Any) -> None:
        self.lock(name, cls, **options)

    def acquire(self, name: str, *args: Any, **options: Any) -> bool:
        return self.lock(name).acquire(*args, **options)

    def release(self, name: str) -> None:
        self.lock(name).release()

    def token(self, name: str) -> fencedlock.FencingToken:
        return self.lock(name).token

    def abandoned(self, name: str) -> bool:
        return self.lock(name).abandoned

    def ensure_held(self, name: str) -> None:
        self.lock(name).ensure_held()

    def renew(self, name: str, ttl: float | None = None) -> None:
        self.lock(name).renew(ttl)

    def wait_lost(self, name: str, timeout: float) -> bool:
        return self.lock(name).lost.wait(timeout)

    def wanted(self, name: str) -> str | None:
        return self.lock(name).wanted

    def detach(self, name: str, **options: Any) -> str:
        return self.lock(name).detach(**options)

    def attach(self, name: str, secret: str) -> fencedlock.FencingToken:
        self.lock(name).attach(secret)
        return self.lock(name).token

    def count(self, name: str) -> int:
        return self.lock(name)._recursion_count()

    def count_up(self, name: str, counter: Path, times: int) -> list[int]:
        """Increment the number in a file under the lock this many times. Return the tokens."""
        tokens = []
        for _ in range(times):
            with self.lock(name) as token:
                counter.write_text(str(int(counter.read_text()) + 1))
                tokens.append(int(token))
        return tokens

    def contend(self, name: str, holds: Path, stop: Path) -> None:
        """Take the lock again and again until the file ``stop`` exists. For each hold, write its
        begin, its end and its token, as this contender saw them, to the file ``holds``.
        """
        with holds.open("a", buffering=1) as written:
            while not stop.exists():
                try:
                    with self.lock(name) as token:
                        began = now_seconds()
                        time.sleep(0.001)
                        ended = min(now_seconds(), self.lock(name)._owned().deadline)
                        written.write(f"{began} {ended} {int(token)}\n")
                except (fencedlock.LockLostError, fencedlock.BackendUnavailableError):
                    pass

    def crowd(self, name: str, size: int) -> list[tuple[int, str]]:
        """Let ``size`` threads take the lock once each. Return their tokens and owners."""
        visits = []

        def visit() -> None:
            with self.client.FairLock(name) as token:
                visits.append((int(token), self.client.inspect(name).owner or ""))

        threads = [threading.Thread(target=visit) for _ in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return visits

    def getpid(self) -> int:
        return os.getpid()


def _serve(orders: Connection, client: fencedlock.Client) -> None:
    served = _Orders(client)
    try:
        while (order := orders.recv()) is not None:
            what, args, options = order
            try:
                orders.send((None, getattr(served, what)(*args, **options)))
            except Exception as error:
                orders.send((error, None))
    except (EOFError, OSError):
        pass
    finally:
        for lock in served.locks.values():
            while lock._is_owned():
                with contextlib.suppress(fencedlock.LockLostError):
                    lock.release()
        orders.close()


def _count_up(counter: Path) -> None:
    counter.write_text(str(int(counter.read_text()) + 1))


class _TaskOrders:
    """The same orders, carried out by a task with the locks of fencedlock.asyncio."""

    def __init__(self, client: fencedlock.Client) -> None:
        self.client = client
        self.locks: dict[str, Any] = {}

    def lock(self, name: str, cls: str = "RLock", **options: Any) -> Any:
        if name not in self.locks:
            self.locks[name] = getattr(fencedlock.asyncio, cls)(name, client=self.client, **options)
        return self.locks[name]

    async def make(self, name: str, cls: str = "RLock", **options: Any) -> None:
        self.lock(name, cls, **options)

    async def acquire(self, name: str, *args: Any, **options: Any) -> bool:
        acquired: bool = await self.lock(name).acquire(*args, **options)
        return acquired

    async def release(self, name: str) -> None:
        await self.lock(name).release()

    async def token(self, name: str) -> Any:
        return self.lock(name).token

    async def abandoned(self, name: str) -> Any:
        return self.lock(name).abandoned

    async def ensure_held(self, name: str) -> None:
        self.lock(name).ensure_held()

    async def renew(self, name: str, ttl: float | None = None) -> None:
        await self.lock(name).renew(ttl)

    async def wait_lost(self, name: str, timeout: float) -> bool:  # noqa: ASYNC109
        try:
            await asyncio.wait_for(self.lock(name).lost.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def wanted(self, name: str) -> Any:
        return self.lock(name).wanted

    async def detach(self, name: str, **options: Any) -> Any:
        return await self.lock(name).detach(**options)

    async def attach(self, name: str, secret: str) -> Any:
        await self.lock(name).attach(secret)
        return self.lock(name).token

    async def count(self, name: str) -> Any:
        return self.lock(name).depth

    async def count_up(self, name: str, counter: Path, times: int) -> list[int]:
        tokens = []
        for _ in range(times):
            async with self.lock(name) as token:
                _count_up(counter)
                tokens.append(int(token))
        return tokens

    async def crowd(self, name: str, size: int) -> list[tuple[int, str]]:
        visits = []

        async def visit() -> None:
            async with fencedlock.asyncio.FairLock(name, client=self.client) as token:
                info = await asyncio.to_thread(self.client.inspect, name)
                visits.append((int(token), info.owner or ""))

        await asyncio.gather(*(visit() for _ in range(size)))
        return visits

    async def getpid(self) -> int:
        return os.getpid()


def _serve_by_a_task(orders: Connection, client: fencedlock.Client) -> None:
    asyncio.run(_serve_orders(orders, _TaskOrders(client)))


async def _serve_orders(orders: Connection, served: _TaskOrders) -> None:
    try:
        while (order := await asyncio.to_thread(orders.recv)) is not None:
            what, args, options = order
            try:
                orders.send((None, await getattr(served, what)(*args, **options)))
            except Exception as error:
                orders.send((error, None))
    except (EOFError, OSError):
        pass
    finally:
        for lock in served.locks.values():
            while lock.owned():
                with contextlib.suppress(fencedlock.LockLostError):
                    await lock.release()
        orders.close()


def visit(lock: fencedlock.RLock) -> fencedlock.FencingToken:
    """Acquire and release the lock. Return the token."""
    with lock as token:
        return token
