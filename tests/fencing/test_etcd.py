"""EtcdFence refuses writes under a hold that has ended, with our client and with that of etcd3."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock import FencingToken
from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.messages import messages
from fencedlock.fencing.etcd import EtcdFence
from tests.backends.etcd.ready import ready_client
from tests.contenders import Contender
from tests.etcd_servers import EtcdServer


def value_of(server: EtcdServer, key: str) -> bytes | None:
    connections = server.connections()
    kvs = connections.call(calls.RANGE, messages().RangeRequest(key=key.encode()), 10).kvs
    connections.close()
    return bytes(kvs[0].value) if kvs else None


@pytest.fixture
def client(etcd_server: EtcdServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(etcd_server.url, ttl=10)


def test_what_the_holder_writes_is_accepted_all_or_nothing(
    etcd_server: EtcdServer, client: fencedlock.Client, name: str
) -> None:
    fence = EtcdFence(client)
    with client.FairLock(name) as token, client.FairLock(name):
        client.RLock(name).renew()
        first = fence.transaction(token, put={f"{name}/a": "1", f"{name}/b".encode(): b"2"})
        assert fence.transaction(token, delete=[f"{name}/b"]) > first
        assert value_of(etcd_server, f"{name}/a") == b"1"
        assert value_of(etcd_server, f"{name}/b") is None
    with pytest.raises(fencedlock.StaleTokenError, match="nobody holds it now") as caught:
        fence.transaction(token, put={f"{name}/a": "3"})
    assert (caught.value.presented, caught.value.stored, caught.value.lock) == (
        int(token),
        None,
        name,
    )
    assert value_of(etcd_server, f"{name}/a") == b"1"


def test_a_holder_frozen_past_its_lease_writes_nothing(
    etcd_server: EtcdServer,
    client: fencedlock.Client,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    frozen = contender("process", client)
    frozen.ask("make", name, ttl=1)
    frozen.ask("acquire", name)
    old = frozen.ask("token", name)
    frozen.freeze()
    fence = EtcdFence(client)
    with client.FairLock(name) as token:
        with pytest.raises(
            fencedlock.StaleTokenError, match=f"token {token} holds it now"
        ) as caught:
            fence.transaction(old, put={f"{name}/a": "stale"})
        assert caught.value.stored == int(token)
        fence.transaction(token, put={f"{name}/a": "new"})
    frozen.thaw()
    assert value_of(etcd_server, f"{name}/a") == b"new"


def test_raised_tokens_are_known(client: fencedlock.Client, name: str) -> None:
    fence = EtcdFence(client)
    with client.RLock(name) as before:
        client.raise_floor(FencingToken(name, 10**15))
        fence.transaction(before, put={f"{name}/a": "1"})
    with client.RLock(name) as after:
        assert int(after) > 10**15
        fence.transaction(after, put={f"{name}/a": "2"})
        with pytest.raises(fencedlock.StaleTokenError):
            fence.transaction(before, put={f"{name}/a": "1"})


def test_counting_by_threads_that_lose_their_locks_loses_no_update(
    etcd_server: EtcdServer, client: fencedlock.Client, name: str
) -> None:
    fence, key = EtcdFence(client), f"{name}/counter"
    accepted = [0] * 4

    def count(index: int) -> None:
        for number in range(25):
            with client.FairLock(name) as token:
                value = int(value_of(etcd_server, key) or 0)
                if number % 5 == 0:
                    client.force_release(name)  # another thread may take the lock now
                try:
                    fence.transaction(token, put={key: str(value + 1)})
                    accepted[index] += 1
                except fencedlock.StaleTokenError:
                    assert number % 5 == 0

    def loses(index: int) -> None:
        try:
            count(index)
        except fencedlock.LockLostError:
            pass

    for _ in range(3):
        threads = [threading.Thread(target=loses, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(accepted) == int(value_of(etcd_server, key) or 0)


@pytest.mark.parametrize("wrong", [{}, {"put": {}}, {"delete": []}], ids=repr)
def test_a_transaction_that_writes_nothing(
    client: fencedlock.Client, wrong: Any, name: str
) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match="protects nothing"):
        EtcdFence(client).transaction(FencingToken(name, 1), **wrong)


def test_wrong_arguments(
    client: fencedlock.Client, server: Any, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    for wrong in (None, "etcd://x", connect(server.url)):
        with pytest.raises(fencedlock.ConfigurationError, match="etcd"):
            EtcdFence(wrong)
    with pytest.raises(fencedlock.ConfigurationError, match="timeout"):
        EtcdFence(client, timeout=0)
    fence = EtcdFence(client)
    with pytest.raises(TypeError, match="FencingToken"):
        fence.transaction(5, put={"a": "b"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str or bytes"):
        fence.transaction(FencingToken(name, 1), put={"a": 5})  # type: ignore[dict-item]


def test_the_compare_in_a_transaction_of_etcd3(
    etcd_server: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    etcd = ready_client(etcd_server)
    fence, key = EtcdFence(etcd), f"{name}/a"

    def write(token: FencingToken, value: str) -> None:
        done, _ = etcd.transaction(
            compare=[fence.compare(token)], success=[etcd.transactions.put(key, value)], failure=[]
        )
        if not done:
            raise fence.stale(token)

    with connect(etcd).FairLock(name) as token:
        write(token, "1")
        fence.transaction(token, put={f"{name}/b": "1"})
    with pytest.raises(fencedlock.StaleTokenError):
        write(token, "2")
    assert etcd.get(key)[0] == b"1"
