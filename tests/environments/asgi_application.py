"""The service of test_exit.py. Its lifespan closes the client, as docs/operations.rst advises."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import fencedlock

client = fencedlock.connect(os.environ["LOCK_URL"], ttl=60)


def work() -> None:
    """Handle a request in a worker thread: take the lock, and hold it until it is lost."""
    lock = client.RLock(os.environ["LOCK_NAME"])
    with lock:
        while True:
            lock.ensure_held()
            time.sleep(0.01)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.to_thread(client.close)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await asyncio.to_thread(work)
