"""The service of the page for web services, run as it stands there, by several uvicorns.

``FENCEDLOCK_REQUESTS=20000 pytest -s tests/docs/test_web.py`` sends more requests, and shows their
statuses.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import fencedlock
from tests.conftest import eventually
from tests.docs.test_howtos import code_of
from tests.servers import LockServer, free_port

PAGE = Path(__file__).parents[2] / "docs" / "web.rst"
REQUESTS = int(os.environ.get("FENCEDLOCK_REQUESTS", "500"))
ORDERS = 5
TTL_SECONDS = 2.0
MOST_SECONDS = 30.0
"""The limit of a request: 2 s for the lock, as long for the lock server, and a slow machine."""

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")


class Service:
    """One uvicorn."""

    def __init__(self, folder: Path, url: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.killed = False
        self._log = (folder / f"log{self.port}").open("w+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "shop:app", "--port", str(self.port)),
                *("--timeout-graceful-shutdown", "5", "--log-level", "warning"),
                # A connection that is closed while it is used again would fail a request.
                *("--timeout-keep-alive", "600"),
            ],
            cwd=folder,
            env=os.environ
            | {
                "FENCEDLOCK_URL": url,
                "TTL": str(TTL_SECONDS),
                "PYTHONPATH": str(PAGE.parents[1]),
            },
            stderr=self._log,
        )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        try:
            return httpx.get(f"{self.url}/docs").status_code == 200
        except httpx.HTTPError:
            return False

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def kill(self) -> None:
        self.killed = True
        self.process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    (tmp_path / "shop.py").write_text(code_of(PAGE))
    services: list[Service] = []

    def start(url: str) -> Service:
        services.append(Service(tmp_path, url))
        return services[-1]

    yield start
    for service in services:
        service.stop()


def test_statuses(
    start: Callable[[str], Service],
    own_server: Callable[..., Any],
    connect: Callable[..., fencedlock.Client],
    tmp_path: Path,
) -> None:
    server = own_server()
    service, client = start(server.url), connect(server.url, ttl=10)
    pay = f"{service.url}/orders/1/pay?amount=5"
    assert httpx.post(pay).json() == {"paid": 5}
    assert httpx.post(pay).json() == {"paid": 10}
    with client.RLock("orders/1"):
        busy = httpx.post(pay, timeout=MOST_SECONDS)
        assert (busy.status_code, busy.headers["Retry-After"]) == (423, "1")
    with sqlite3.connect(tmp_path / "shop.db", isolation_level=None) as db:
        db.execute("UPDATE fences SET token = token + 1000000000000")
    assert httpx.post(pay).status_code == 409
    server.kill()
    away = httpx.post(f"{service.url}/orders/2/pay?amount=5", timeout=MOST_SECONDS)
    assert (away.status_code, away.headers["Retry-After"]) == (503, "1")


@pytest.mark.timeout(max(300, REQUESTS))
def test_no_payment_is_lost_whatever_happens_to_workers_and_lock_server(
    start: Callable[[str], Service], own_server: Callable[..., Any], tmp_path: Path
) -> None:
    server: LockServer = own_server(appendonly="yes")
    services = [start(server.url) for _ in range(3)]
    outcomes: Counter[int | str] = Counter()
    paid: Counter[int] = Counter()
    unknown: Counter[int] = Counter()
    slowest = 0.0

    async def send(http: httpx.AsyncClient, number: int, room: asyncio.Semaphore) -> None:
        nonlocal slowest
        async with room:
            order = number % ORDERS
            service = random.choice([each for each in services if not each.killed])
            begun = time.monotonic()
            try:
                got = await http.post(f"{service.url}/orders/{order}/pay?amount=1")
            except httpx.TransportError:
                assert service.killed, service.said()
                outcomes["killed"] += 1
                unknown[order] += 1
                return
            if service is not services[1]:  # it is frozen for a while
                slowest = max(slowest, time.monotonic() - begun)
            outcomes[got.status_code] += 1
            assert got.status_code in (200, 409, 423, 503), got.text
            paid[order] += got.status_code == 200

    async def disturb() -> None:
        async def reached(share: float) -> None:
            while sum(outcomes.values()) < share * REQUESTS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        await reached(0.2)
        services[0].kill()
        await reached(0.3)
        services[1].process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5 * TTL_SECONDS)
        services[1].process.send_signal(signal.SIGCONT)
        await reached(0.5)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await reached(0.7)
        await asyncio.to_thread(lose_data, server)

    async def main() -> None:
        room = asyncio.Semaphore(20)
        async with httpx.AsyncClient(timeout=MOST_SECONDS, limits=httpx.Limits()) as http:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(disturb())
                for number in range(REQUESTS):
                    tasks.create_task(send(http, number, room))

    asyncio.run(main())
    print(f"{dict(outcomes)}, the slowest request took {slowest:.1f} s")
    assert sum(outcomes.values()) == REQUESTS
    assert slowest < MOST_SECONDS
    with sqlite3.connect(tmp_path / "shop.db") as db:
        found = {int(order): amount for order, amount in db.execute("SELECT * FROM orders")}
    for order in range(ORDERS):
        assert paid[order] <= found[order] <= paid[order] + unknown[order]


def lose_data(server: Any) -> None:
    """Restart the lock server without its data."""
    server.kill()
    for file in server.folder.glob("appendonlydir/*"):
        file.unlink()
    server.start()
    with server.client() as raw:
        assert raw.dbsize() < ORDERS * 5
