"""A process is copied by a fork in C, for which no hook is called.

The copy notices this, and becomes a client of its own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.environments.conftest import Program
from tests.forks import FORKS
from tests.servers import LockServer, RedisServer

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.PyDLL(None), "fork"), reason="this system has no fork()"
)


def finished(program: Program, server: LockServer, name: str) -> None:
    program.expect("done")
    program.end()
    assert server.leftovers(name) == set()


@pytest.mark.parametrize("cls", ["RLock", "Lock"])
def test_copies_of_a_client_that_was_not_used_count_up_together(
    cls: str, lock_server: LockServer, program: Callable[..., Program], name: str, tmp_path: Path
) -> None:
    running = program("copying", "unused", lock_server.url, name, tmp_path / "counter", cls)
    finished(running, lock_server, name)


def test_copies_of_copies_of_a_client_that_was_not_used(
    lock_server: LockServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "unused_generations", lock_server.url, name), lock_server, name)


def test_copies_of_a_client_that_was_used_count_up_together(
    server: RedisServer, program: Callable[..., Program], name: str, tmp_path: Path
) -> None:
    finished(program("copying", "used", server.url, name, tmp_path / "counter"), server, name)


def test_copies_of_copies_hold_for_themselves(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    running = program("copying", "generations", server.url, name)
    running.expect("done")
    running.end()
    assert [server.leftovers(f"{name}/{generation}") for generation in range(3)] == [
        set(),
        set(),
        set(),
    ]


def test_a_copy_of_a_holder_is_no_holder_whatever_it_does_first(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "holding", server.url, name), server, name)


def test_a_copy_may_force_its_original_s_lock(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "holding_and_forced", server.url, name), server, name)


def test_a_look_at_all_locks_goes_on_in_a_copy(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "looking", server.url, name), server, name)


def test_a_copy_does_not_wait_for_mutexes_of_threads_that_it_does_not_have(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "mutexes", server.url, name), server, name)


def test_a_copy_of_a_process_that_waits_has_a_place_and_an_inbox_of_its_own(
    server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "waiting", server.url, name), server, name)


@pytest.mark.parametrize("cls", ["FairLock", "Lock"])
@pytest.mark.parametrize("fork", FORKS)
def test_a_copy_that_a_signal_handler_makes_of_a_waiter_waits_for_itself(
    fork: str, cls: str, server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    running = program("copying", "handler_while_waiting", server.url, name, fork, cls)
    finished(running, server, name)


@pytest.mark.parametrize("first", ["copy", "original"])
@pytest.mark.parametrize("fork", FORKS)
def test_a_copy_that_a_signal_handler_makes_in_a_call_does_not_take_its_original_s_grant(
    fork: str,
    first: str,
    own_server: Callable[..., Any],
    program: Callable[..., Program],
    name: str,
) -> None:
    server = own_server()
    finished(
        program(
            "copying", "handler_while_asking", server.url, name, fork, first, server.process.pid
        ),
        server,
        name,
    )


def test_a_copy_of_a_client_of_etcd_that_was_used_gets_one_clear_error(
    etcd_server: LockServer, program: Callable[..., Program], name: str
) -> None:
    finished(program("copying", "used_on_etcd", etcd_server.url, name), etcd_server, name)


def test_a_copy_with_the_same_process_id_is_noticed(
    lock_server: LockServer, program: Callable[..., Program], name: str
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("PID namespaces are Linux's")
    running = program("copying", "namespaces", lock_server.url, name)
    heard = running.hear()
    if heard.startswith("not permitted"):
        pytest.skip(f"this user may not make PID namespaces: {heard}")
    assert heard == "done", running.errors
    running.end()
    assert lock_server.leftovers(name) == set()
