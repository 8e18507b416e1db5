"""Ready client objects of the real package etcd3. ``tox run -e etcd3`` runs these tests."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import fencedlock
from tests.backends.etcd.ready import ready_client
from tests.conftest import eventually
from tests.etcd_servers import EtcdServer


def test_locks_waits_and_hands_over(
    backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    etcd = ready_client(backend)
    client = connect(etcd, ttl=3)
    lock = client.FairLock(name)
    tokens: list[int] = []

    def visit() -> None:
        with client.FairLock(name) as token:
            tokens.append(int(token))

    with lock as token, lock:
        waiter = threading.Thread(target=visit)
        waiter.start()
        eventually(lambda: lock.info().waiters)
        until = time.monotonic() + 4
        while time.monotonic() < until:
            lock.ensure_held()
            time.sleep(0.05)
        released = time.monotonic()
    waiter.join(60)
    assert time.monotonic() - released < 2
    assert tokens[0] > int(token)
    client.close()
    etcd.put("still", "works")  # its channel is not ours to close
    assert etcd.get("still")[0] == b"works"


def test_its_channel_metadata_and_timeout_are_read_at_every_call(
    guarded: EtcdServer, connect: Callable[..., fencedlock.Client]
) -> None:
    etcd = ready_client(guarded, user="root", password="sesame", timeout=3)
    lock = connect(etcd, ttl=9).RLock("x")
    with lock:
        pass
    other = ready_client(guarded, user="root", password="sesame")
    etcd.channel.close()
    etcd.channel, etcd.metadata = other.channel, other.metadata
    with lock as token:
        assert token
    etcd.metadata = None
    with pytest.raises(fencedlock.BackendMisconfiguredError, match="user"):
        lock.acquire()
    etcd.metadata = other.metadata
    etcd.timeout = 0.3
    guarded.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.acquire(False)
        assert time.monotonic() - began < 3
    finally:
        guarded.thaw()


def test_a_forked_child_is_told_to_connect_anew(
    backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    lock = connect(ready_client(backend)).RLock(name)
    with lock:
        pass
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            lock.acquire()
        except fencedlock.BackendMisconfiguredError as error:
            status = 0 if "forked" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with lock:
        pass


def test_a_copy_that_was_forked_in_c_gets_one_clear_error_by_url_too(
    backend: EtcdServer, name: str
) -> None:
    ready_client(backend)  # skips the test if there is none
    command = [
        sys.executable,
        "-m",
        "tests.environments.copying",
        "used_by_another_on_etcd",
        backend.url,
        name,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_its_locks_can_not_be_pickled(
    backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    with pytest.raises(TypeError, match="connect with a URL"):
        pickle.dumps(connect(ready_client(backend)).RLock(name))
