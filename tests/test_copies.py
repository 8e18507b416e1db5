"""Copies and pickles of locks and clients belong to the client that they came from."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import redis

import fencedlock
from fencedlock import connecting
from tests.contenders import Contender
from tests.servers import RedisServer


class Watch:
    """An object whose method is pickled by value, so each unpickling makes another object."""

    def told(self, lock: fencedlock.RLock, reason: str) -> None:
        pass


class Job:
    """An object that has a lock as one of its attributes."""

    def __init__(self, lock: fencedlock.RLock) -> None:
        self.lock = lock


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}
MAKERS: dict[str, Callable[[RedisServer], dict[str, Any]]] = {
    "plain": lambda server: {"target": server.url},
    "bound method": lambda server: {"target": server.url, "on_lost": Watch().told},
    "lambda": lambda server: {"target": server.url, "on_lost": lambda *_: None},
    "ready": lambda server: {"target": redis.Redis(port=server.port)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", ["RLock", "FairLock"])
def test_a_copy_is_the_same_lock(
    way: str,
    maker: str,
    kind: str,
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    if way == "pickle" and maker in ("lambda", "ready"):
        pytest.skip("it can't be pickled")
    first, second, third = (connect(**MAKERS[maker](server)) for _ in range(3))
    for client in (first, second, third):
        assert WAYS[way](client) is client
        lock = getattr(client, kind)(name, ttl=9)
        twin = WAYS[way](Job(lock)).lock
        assert (type(twin), twin.name, twin._client) == (type(lock), name, client)
        with lock as token, twin as same:
            assert same == token
            assert lock._recursion_count() == 2
        assert WAYS[way]({"locks": [lock, lock]})["locks"][0]._client is client


def test_a_lock_s_own_callback_is_not_copied(client: fencedlock.Client, name: str) -> None:
    watch = Watch()
    lock = client.RLock(name, on_lost=watch.told)
    assert copy.deepcopy(lock)._callbacks.on_lost == watch.told


def test_a_copy_of_a_closed_client_s_lock_is_closed_too(server: RedisServer, name: str) -> None:
    client = fencedlock.connect(server.url)
    lock = client.RLock(name)
    client.close()
    with pytest.raises(fencedlock.ConfigurationError, match="closed"):
        copy.deepcopy(lock).acquire()


def test_a_closed_client_is_not_found(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    first, second = connect(server.url), connect(server.url)
    packed = pickle.dumps(second.RLock(name))
    second.close()
    again = pickle.loads(packed)._client
    assert again not in (first, second)
    assert pickle.loads(packed)._client is again
    assert pickle.loads(pickle.dumps(again)) is again, (
        "it has the origin of the one that was closed"
    )
    again.close()
    assert pickle.loads(packed)._client is not again


def test_a_forked_child_finds_what_it_inherited(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    clients = [connect(server.url) for _ in range(2)]
    packed = [pickle.dumps(client.RLock(name)) for client in clients]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = (
                0
                if all(
                    pickle.loads(each)._client is client
                    for each, client in zip(packed, clients, strict=True)
                )
                else 2
            )
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


ELSEWHERE = """
import pickle, sys
first, again, second = (pickle.loads(bytes.fromhex(text)) for text in sys.argv[1:])
with first as token, again as same:
    assert token == same and first._client is again._client and second._client is not first._client
    assert not second.acquire(False), "another client is another owner"
print(*(pickle.dumps(lock).hex() for lock in (first, second)))
for lock in (first, second):
    lock._client.close()
"""


def test_another_process_has_a_client_for_each(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    clients = [connect(server.url) for _ in range(2)]
    packed = [pickle.dumps(client.RLock(name)).hex() for client in clients]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, packed[0], packed[0], packed[1]],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    returned = [pickle.loads(bytes.fromhex(text))._client for text in done.stdout.split()]
    assert returned == clients, "what comes home is of the client that it left"


def test_the_settings_travel(
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    client = connect(f"{server.url}?ttl=9&namespace=travels", outage_timeout=3)
    packed = pickle.dumps(client)
    client.close()
    again = pickle.loads(packed)
    assert (again._table.ttl, again._table.outage_timeout, again._table.backend._namespace) == (
        9,
        3,
        "travels",
    )
    again.close()


def test_only_so_many_are_kept_for_locks_that_are_gone(
    server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "_unpickled", {})
    monkeypatch.setattr(connecting, "MOST_UNPICKLED", 2)
    held = pickle.loads(_packed_elsewhere(server.url, name))
    seen = [
        weakref.ref(pickle.loads(_packed_elsewhere(server.url, name))._client) for _ in range(4)
    ]
    gc.collect()
    assert [ref() is not None for ref in seen] == [False, False, True, True]
    assert pickle.loads(pickle.dumps(held))._client is held._client, (
        "a client lives as long as its locks do"
    )
    for client in [held._client, *(kept for ref in seen if (kept := ref()))]:
        client.close()


def _packed_elsewhere(url: str, name: str) -> bytes:
    """Return a pickled lock as it comes from another process: its client is not in this one."""
    client = fencedlock.connect(url)
    packed = pickle.dumps(client.RLock(name))
    client.close()
    return packed
