"""No exception costs a client one of its connections for good."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

import fencedlock
from fencedlock.backends.redis.connections import MOST_CONNECTIONS
from tests.conftest import eventually
from tests.contenders import visit
from tests.servers import RedisServer


class _Failing(redis.Connection):
    """A connection that raises the exception that a test chooses, at the place that it chooses."""

    place = ""
    failure: Callable[[], BaseException] = RuntimeError

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._fail("init")
        super().__init__(*arguments, **options)

    def _fail(self, place: str) -> None:
        if type(self).place == place or _Failing.place == place:
            raise _Failing.failure()

    def connect(self) -> None:
        self._fail("before")
        super().connect()
        self._fail("after")

    def on_connect(self) -> None:
        self._fail("login")
        super().on_connect()

    def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        self._fail("send")
        super().send_packed_command(*arguments, **options)


FAILURES: dict[str, Callable[[], BaseException]] = {
    "RuntimeError": lambda: RuntimeError("out of luck"),
    "KeyError": lambda: KeyError("no such secret"),
    "OSError": lambda: OSError(errno.EMFILE, "too many open files"),
    "TimeoutError": TimeoutError,
    "redis": lambda: redis.ConnectionError("closed"),
    "SystemExit": SystemExit,
    "of another kind": lambda: type("StrangeError", (Exception,), {})("?"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("place", ["init", "before", "after", "login", "send"])
def test_a_connection_class_that_raises_costs_no_connection(
    place: str,
    failure: str,
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    pool = redis.ConnectionPool(connection_class=_Failing, port=server.port)
    client = connect(redis.Redis(connection_pool=pool), ttl=10, socket_timeout=1)
    monkeypatch.setattr(_Failing, "failure", staticmethod(FAILURES[failure]))
    monkeypatch.setattr(_Failing, "place", place)
    lock = client.RLock(name)
    for _ in range(MOST_CONNECTIONS + 3):
        begun = time.monotonic()
        try:
            lock.acquire(False)
            lock.release()
            client.inspect(name)
        except (Exception, SystemExit) as error:  # the program's own exception comes out unchanged
            assert not isinstance(error, AttributeError), error
        assert time.monotonic() - begun < 2
    monkeypatch.setattr(_Failing, "place", "")
    with lock:
        pass
    threads = [threading.Thread(target=visit, args=(client.FairLock(name),)) for _ in range(4)]
    with lock:
        for thread in threads:
            thread.start()
        eventually(lambda: len(lock.info().waiters) == len(threads))
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


OUT_OF_FILES = """
import os, resource, sys, fencedlock
client = fencedlock.connect(sys.argv[1], ttl=10, socket_timeout=1, outage_timeout=1)
lock = client.RLock(sys.argv[2])
if sys.argv[3] == "warm":
    with lock:
        pass
    client._table.backend.connections.close_idle()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
used = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 50
for limit in range(used - 1, used + 8):  # at each place where a file is opened
    files = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        for _ in range(40):
            try:
                if lock.acquire(False):  # else a release that had no answer is still to be repeated
                    lock.release()
                client._table.backend.connections.close_idle()
            except fencedlock.BackendError:
                pass
        client._table.backend._inbox.hang_up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
with lock:
    pass
print("works", flush=True)
"""


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_a_process_without_free_files_works_again_when_it_has_some(
    start: str, server: RedisServer, name: str
) -> None:
    command = [sys.executable, "-c", OUT_OF_FILES, server.url, name, start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "works\n", done.stderr


INTERRUPTED = """
import random, signal, sys, time, logging, fencedlock
logging.getLogger("fencedlock").setLevel(logging.CRITICAL)
class SoftTimeLimit(Exception): pass
armed = False
def handler(*_):
    if armed:
        raise SoftTimeLimit
signal.signal(signal.SIGALRM, handler)
draw = random.Random(int(sys.argv[3]))
client = fencedlock.connect(sys.argv[1], ttl=10)
lock = client.RLock(sys.argv[2])
with lock: pass
hits, until = 0, time.monotonic() + 30
while hits < 150 and time.monotonic() < until:
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(2e-5, 8e-4))
        try:
            with lock: pass
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    except SoftTimeLimit:
        armed = False
        hits += 1
    except fencedlock.LockLostError:
        pass
    while lock._is_owned():
        try:
            lock.release()
        except fencedlock.LockLostError:
            pass
assert hits >= 20, hits
assert client.RLock(sys.argv[2] + "/other").acquire(timeout=3)
client.close()
print("works", flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_exceptions_of_signal_handlers_cost_no_connection(
    seed: int, server: RedisServer, name: str
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, server.url, name, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "works\n", done.stderr
