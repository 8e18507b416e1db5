"""The end of programs with exit handlers that lock, a silent server or dropped clients.

A program may also be ended by a signal.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fencedlock
from fencedlock.runtime.at_exit import CLOSE_SECONDS
from tests.conftest import eventually
from tests.environments.conftest import Program
from tests.environments.exiting import KINDS
from tests.servers import LockServer, RedisServer, free_port

CLIENTS = 4


@pytest.mark.parametrize("when", ["before the import", "after the import", "first lock"])
def test_an_exit_handler_can_lock(
    when: str, lock_server: LockServer, program: Callable[..., Program], name: str
) -> None:
    running = program("exiting", "handler", lock_server.url, name, when)
    running.expect("done")
    running.expect("flushed")
    running.end()
    assert lock_server.leftovers(name) == set()


@pytest.mark.parametrize("kind", ["redis", "etcd"])
def test_a_silent_server_delays_the_exit_once_and_not_once_for_each_client(
    kind: str, own_server: Callable[..., Any], program: Callable[..., Program], name: str
) -> None:
    from tests.etcd_servers import any_etcd
    from tests.servers import any_redis_server

    server = own_server(any_redis_server() if kind == "redis" else any_etcd())
    running = program("exiting", "frozen", server.url, name, CLIENTS)
    running.expect("freeze")
    server.freeze()
    began_at = time.monotonic()
    running.tell("frozen")
    running.expect("done")
    running.end()
    assert time.monotonic() - began_at < (CLIENTS - 1) * CLOSE_SECONDS
    server.thaw()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_clients_that_are_dropped_leave_no_threads_and_no_files(
    kind: str, lock_server: LockServer, program: Callable[..., Program], name: str
) -> None:
    running = program("exiting", "dropped", lock_server.url, name, kind)
    running.expect("done")
    running.end()
    assert lock_server.leftovers(name) == set()


@pytest.fixture
def slow_threads(tmp_path: Path) -> str:
    """A shared library that delays the begin of each thread."""
    compiler, library = shutil.which("cc") or shutil.which("gcc"), tmp_path / "slow_threads.so"
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler on Linux: it makes the library that delays threads")
    source = Path(__file__).with_name("slow_threads.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


def test_an_exit_waits_for_a_thread_that_has_not_begun(
    slow_threads: str, server: RedisServer, command: Callable[..., Program], name: str
) -> None:
    """Debian's Python 3.11.2 frees the memory of a thread that has not begun.

    The C library overwrites here what is freed, so that each use of it shows. The scenario is one
    in which the release at exit opens a connection.
    """
    running = command(
        *(sys.executable, "-m", "tests.environments.copying", "holding_and_forced"),
        *(server.url, name),
        LD_PRELOAD=slow_threads,
        MALLOC_PERTURB_="165",
    )
    running.expect("done")
    running.end()
    assert server.leftovers(name) == set()


def test_a_service_that_closes_its_client_leaves_no_lock_to_a_request_that_did_not_end(
    lock_server: LockServer,
    connect: Callable[..., fencedlock.Client],
    command: Callable[..., Program],
    name: str,
) -> None:
    pytest.importorskip("uvicorn")
    port, looking = free_port(), connect(lock_server.url)
    running = command(
        *(sys.executable, "-m", "uvicorn", "tests.environments.asgi_application:application"),
        *("--port", str(port), "--timeout-graceful-shutdown", "1", "--log-level", "warning"),
        LOCK_URL=lock_server.url,
        LOCK_NAME=name,
    )

    def request() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            return None  # it is still starting

    with eventually(request, 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        eventually(lambda: looking.inspect(name).locked)
        running.process.send_signal(signal.SIGTERM)
        # Newer versions of uvicorn send the signal to themselves after everything else has ended.
        assert running.process.wait(60) in (0, -signal.SIGTERM), running.errors
    assert lock_server.leftovers(name) == set()
