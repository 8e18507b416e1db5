"""Celery's workers: their pools (processes, threads, greenlets), soft time limits and ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import fencedlock
from tests.conftest import eventually
from tests.environments.conftest import Program
from tests.servers import LockServer, RedisServer

TOGETHER = 3
TIMES = 20

Worker = Callable[..., Program]


@pytest.fixture
def worker(
    server: RedisServer, command: Callable[..., Program], name: str, tmp_path: Path
) -> Worker:
    """A function that starts a worker with this kind of pool. The worker sends itself tasks."""
    for package in ("celery", "kombu"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    (tmp_path / "counter").write_text("0")
    (tmp_path / "notes").touch()

    def start(pool: str, url: str, task: str, tasks: int, **environment: str) -> Program:
        if pool not in {"prefork", "threads"} and find_spec(pool) is None:
            pytest.skip(f"{pool} is not installed")
        return command(
            *(
                sys.executable,
                "-m",
                "celery",
                "-A",
                "tests.environments.celery_application",
                "worker",
            ),
            *(
                "-P",
                pool,
                "-c",
                str(TOGETHER),
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "-l",
                "WARNING",
            ),
            BROKER_URL=server.url,
            LOCK_URL=url,
            LOCK_NAME=name,
            FOLDER=str(tmp_path),
            TASK=task,
            TASKS=str(tasks),
            C_FORCE_ROOT="1",
            **environment,
        )

    return start


def notes(folder: Path, beginning: str = "") -> list[str]:
    return [
        line for line in (folder / "notes").read_text().splitlines() if line.startswith(beginning)
    ]


def ended(running: Program, number: int = signal.SIGTERM) -> None:
    running.process.send_signal(number)
    assert running.process.wait(60) == 0, running.errors


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_tasks_of_a_pool_exclude_each_other(
    pool: str, server: RedisServer, worker: Worker, name: str, tmp_path: Path
) -> None:
    running = worker(pool, server.url, f"count {TIMES} {TOGETHER}", TOGETHER)
    eventually(lambda: len(notes(tmp_path, "counted")) == TOGETHER, 60)
    assert len(set(notes(tmp_path, "token"))) == TOGETHER * TIMES, notes(tmp_path)
    assert (tmp_path / "counter").read_text() == str(TOGETHER * TIMES)
    ended(running)
    assert server.leftovers(name) == set()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_of_a_pool_exclude_each_other_on_etcd(
    pool: str, etcd_server: LockServer, worker: Worker, name: str, tmp_path: Path
) -> None:
    running = worker(pool, etcd_server.url, f"count {TIMES} {TOGETHER}", TOGETHER)
    eventually(lambda: len(notes(tmp_path, "counted")) == TOGETHER, 60)
    assert len(set(notes(tmp_path, "token"))) == TOGETHER * TIMES, notes(tmp_path)
    assert (tmp_path / "counter").read_text() == str(TOGETHER * TIMES)
    ended(running)
    assert etcd_server.leftovers(name) == set()


def test_a_soft_time_limit_ends_a_wait_and_leaves_nothing_behind(
    lock_server: LockServer,
    worker: Worker,
    connect: Callable[..., fencedlock.Client],
    name: str,
    tmp_path: Path,
) -> None:
    """The exception comes while another client still holds the lock.

    The test sends the signal that Celery sends at the limit.
    """
    holder = connect(lock_server.url, ttl=30)
    with holder.RLock(name):
        running = worker("prefork", lock_server.url, "wait", 1)
        eventually(lambda: holder.inspect(name).waiters, 60)
        (line,) = notes(tmp_path, "waiting")
        os.kill(int(line.split()[1]), signal.SIGUSR1)
        eventually(lambda: len(notes(tmp_path)) == 2)
        assert notes(tmp_path)[1] == "SoftTimeLimitExceeded"
        eventually(lambda: holder.inspect(name).waiters == ())
    ended(running)
    # The limit may have come while a request was under way. Then the end of its claim is remembered
    # for a while.
    eventually(lambda: lock_server.leftovers(name) <= {":withdrawn"})


@pytest.mark.parametrize("how", ["the worker", "each child, after its task"])
def test_what_children_hold_is_released_when_they_end(
    how: str, lock_server: LockServer, worker: Worker, name: str, tmp_path: Path
) -> None:
    """The locks are released long before their leases would have ended."""
    if how == "the worker":
        running = worker("prefork", lock_server.url, "keep", 1)
        eventually(lambda: notes(tmp_path), 60)
    else:
        running = worker("prefork", lock_server.url, "keep", 3, TASKS_PER_CHILD="1")
        eventually(lambda: len(notes(tmp_path)) == 3, 30)
    assert set(notes(tmp_path)) == {"kept True"}
    ended(running)
    eventually(lambda: lock_server.leftovers(name) == set())
