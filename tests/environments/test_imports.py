"""No call imports a module, because a fork or a signal handler may come in the middle of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.environments.conftest import Program
from tests.servers import LockServer

CALLS = """
import sys, threading, fencedlock
client = fencedlock.connect(sys.argv[1], ttl=2, socket_timeout=1)
lock, other = client.FairLock(sys.argv[2]), client.Lock(sys.argv[2] + "/other")
before = set(sys.modules)
with lock as token:
    with lock:
        lock.renew()
    waiting = threading.Thread(target=lambda: (lock.acquire(), lock.release()))
    waiting.start()
    while not client.inspect(lock.name).waiters:
        pass
waiting.join()
other.acquire()
other.release(keep=0.1)
other.acquire(timeout=60)
list(client.locks())
client.force_release(other.name)
client.ping()
client.raise_floor(token)
lock.acquire()
lock.lost.wait(1)  # beats
lock.release()
client.close()
print(*sorted(set(sys.modules) - before), "were imported")
"""


@pytest.mark.parametrize("behind", ["address", "socket"])
def test_no_call_imports_anything(
    behind: str,
    lock_server: LockServer,
    proxy: Callable[[LockServer], Any],
    command: Callable[..., Program],
    name: str,
) -> None:
    url = proxy(lock_server).url if behind == "address" else lock_server.url
    running = command(sys.executable, "-c", CALLS, url, name)
    running.expect("were imported")
    running.end()
