"""Detached holds on etcd: the leases that their keys depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

import fencedlock
from fencedlock.backends.etcd.connections import LEASE_TIME_TO_LIVE, RANGE, LeaseGoneError
from fencedlock.backends.etcd.lock import EtcdLock
from fencedlock.backends.etcd.messages import messages
from tests.etcd_servers import EtcdServer


@pytest.fixture
def client(backend: EtcdServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


def test_a_detachment_that_failed_leaves_no_lease_for_the_next_one(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    error = fencedlock.BackendUnavailableError("not sent")
    error.sent = False
    with (
        mock.patch.object(EtcdLock, "_end_claim", side_effect=error),
        pytest.raises(fencedlock.BackendUnavailableError),
    ):
        lock.detach(ttl=3)
    lock.ensure_held()
    secret = lock.detach(ttl=60)
    assert client.inspect(name).remaining > 50
    client.attach(secret, name).release()


def test_attaching_ends_the_lease_of_the_detached_hold(
    client: fencedlock.Client, name: str
) -> None:
    connections: Any = client._table.backend.connections  # type: ignore[attr-defined]
    lock = client.RLock(name)
    lock.acquire()
    for _ in range(3):
        secret = lock.detach(ttl=600)
        key = client._table.backend.bind_lock(name).keys.holder  # type: ignore[attr-defined]
        (kv,) = connections.call(RANGE, messages().RangeRequest(key=key), 5).kvs
        lock.attach(secret)
        with pytest.raises(LeaseGoneError):
            request = messages().LeaseTimeToLiveRequest(ID=kv.lease)
            if connections.call(LEASE_TIME_TO_LIVE, request, 5).TTL < 0:
                raise LeaseGoneError("it has ended")
    lock.release()
