"""release(keep=...) uses one lease on the server, and leaves none behind that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock.backends.etcd.connections import LEASE_TIME_TO_LIVE, LeaseGoneError
from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.ticket import ticket_of
from fencedlock.core.answers import RELEASED
from tests.etcd_servers import EtcdServer


@pytest.fixture
def client(backend: EtcdServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


def hold_of(lock: fencedlock.RLock) -> Any:
    (hold,) = lock._settings.resource.holds.values()
    return hold


def lives(client: fencedlock.Client, lease: Any) -> bool:
    connections: Any = client._table.backend.connections  # type: ignore[attr-defined]
    try:
        request = messages().LeaseTimeToLiveRequest(ID=lease.id)
        return int(connections.call(LEASE_TIME_TO_LIVE, request, 5).TTL) > 0
    except LeaseGoneError:
        return False


def test_a_request_that_is_repeated_uses_the_same_lease(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    hold = hold_of(lock)
    assert hold.bound.keep(hold, 600, 5) is RELEASED
    lease = ticket_of(hold).kept
    assert lease is not None
    assert hold.bound.keep(hold, 600, 5) is RELEASED
    assert ticket_of(hold).kept is lease
    assert lives(client, lease)
    client.force_release(name)
    with pytest.raises(fencedlock.LockLostError):
        lock.release()


def test_a_lock_that_was_taken_leaves_no_lease(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    lock.acquire()
    hold = hold_of(lock)
    client.force_release(name)
    with pytest.raises(fencedlock.LockLostError):
        lock.release(keep=600)
    lease = ticket_of(hold).kept
    assert lease is not None
    assert not lives(client, lease)
