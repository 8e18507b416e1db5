"""Faults that a review found. All of them are corrected.

Each had led to a lock that two holders believed in, or to a lock that nobody could get.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

import fencedlock
from fencedlock import FencingToken
from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.keys import lock_keys
from fencedlock.backends.etcd.messages import messages
from tests.conftest import eventually
from tests.contenders import Contender
from tests.etcd_proxy import Call, EtcdProxy
from tests.etcd_servers import EtcdServer, any_etcd
from tests.proxy import HOLD, HOLD_AND_CUT, LOSE, LOSE_REPLY

M = messages()


@pytest.fixture
def wire(backend: EtcdServer) -> Iterator[EtcdProxy]:
    proxy = backend.proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def client(backend: EtcdServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


def test_a_shorter_lease_whose_answer_was_lost_does_not_outlive_the_longer_one_after_it(
    wire: EtcdProxy, client: fencedlock.Client, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    lock = connect(wire.url, ttl=12, socket_timeout=0.3).RLock(name)
    with lock:
        wire.rule = lambda request: LOSE_REPLY if wire.is_call(request, "renew") else None
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.renew(ttl=2)
        wire.rule = lambda request: None
        lock.renew(ttl=12)
        assert lock.remaining() > 8
        assert client.RLock(name).acquire(timeout=4) is False
        lock.ensure_held()


def test_a_manual_renewal_is_asked_again_while_a_member_has_no_leader(
    wire: EtcdProxy, client: fencedlock.Client, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    lock = connect(wire.url, ttl=12).RLock(name)
    refusals = iter([HOLD_AND_CUT] * 4)
    with lock:
        wire.rule = lambda request: next(refusals, None) if wire.is_call(request, "renew") else None
        lock.renew(ttl=60)
        assert next(refusals, None) is None
        assert lock.remaining() > 50
        assert client.inspect(name).remaining > 50


def test_a_waiter_whose_place_had_no_answer_is_served(
    wire: EtcdProxy,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    remote = connect(wire.url, ttl=5, socket_timeout=0.3)
    with remote.RLock("warm up"):
        remote._table.listen(5)
    waiter = contender("thread", remote)
    with client.FairLock(name):
        lost = iter([LOSE_REPLY])
        wire.rule = lambda request: next(lost, None) if wire.is_call(request, "acquire") else None
        waiter.tell("acquire", name)
        wire.wait_for(
            lambda: sum(wire.is_call(request, "acquire") for request in wire.requests) > 2
        )
        eventually(lambda: client.inspect(name).waiters)
        released = time.monotonic()
    assert waiter.answer() is True
    assert time.monotonic() - released < 2


def test_a_late_packet_finds_its_claim_buried_though_the_hold_has_moved_to_another_lease(
    wire: EtcdProxy, client: fencedlock.Client, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    remote = connect(wire.url, ttl=6, socket_timeout=0.3)
    with remote.RLock(f"{name}/other"):  # keeps the lease of six seconds alive
        wire.rule = lambda request: (
            HOLD
            if not wire.held
            and name.encode() in request.body.replace(b"%2F", b"/")
            and is_acquire(request)
            else None
        )
        lock = remote.RLock(name)
        lock.acquire()
        assert wire.held
        lock.renew(ttl=1)
        lock.release()
        wire.deliver()
        assert not client.inspect(name).locked


def is_acquire(request: Call) -> bool:
    return EtcdProxy.is_call(request, "acquire")


def test_a_release_goes_on_as_long_as_the_lease_is_kept_alive(
    wire: EtcdProxy, client: fencedlock.Client, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    remote = connect(wire.url, ttl=2, socket_timeout=0.3)
    with remote.RLock(f"{name}/other") as token:
        assert token
        wire.rule = lambda request: LOSE if wire.is_call(request, "release") else None
        with remote.RLock(name):
            pass
        time.sleep(3)  # longer than the lease, which the other hold keeps alive
        assert client.inspect(name).locked
        wire.rule = lambda request: None
        eventually(lambda: not client.inspect(name).locked, 5)


def test_a_lease_that_is_not_granted_costs_no_hold_on_another_one(
    wire: EtcdProxy,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    remote = connect(wire.url, ttl=2, socket_timeout=5)
    stuck = contender("thread", remote)
    stuck.ask("make", f"{name}/stuck", ttl=60)
    with remote.RLock(name) as token:
        assert token
        wire.rule = lambda request: LOSE if request.method.endswith("/LeaseGrant") else None
        stuck.tell("acquire", f"{name}/stuck")
        until = time.monotonic() + 4
        while time.monotonic() < until:
            remote.RLock(name).ensure_held()
            time.sleep(0.05)
        wire.rule = lambda request: None
    assert stuck.answer() is True


def put_dead_places(backend: EtcdServer, name: str, count: int) -> None:
    connections = backend.connections()
    lease = connections.call(calls.LEASE_GRANT, M.LeaseGrantRequest(TTL=20), 10).ID
    for number in range(count):
        key = lock_keys("fencedlock", name).queue + b"dead/1/%d" % number
        connections.call(calls.PUT, M.PutRequest(key=key, value=b"x", lease=lease), 10)
    connections.close()


def test_a_newcomer_does_not_overtake_who_waits_behind_the_dead(
    backend: EtcdServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    order: list[str] = []

    def enter(label: str, lock: fencedlock.RLock) -> None:
        with lock:
            order.append(label)

    with client.FairLock(name):
        put_dead_places(backend, name, 3)
        patient = threading.Thread(
            target=enter, args=("patient", connect(backend.url).FairLock(name))
        )
        patient.start()
        eventually(lambda: len(client.inspect(name).waiters) == 4)
    newcomer = threading.Thread(
        target=enter, args=("newcomer", connect(backend.url).FairLock(name))
    )
    newcomer.start()
    patient.join(60)
    newcomer.join(60)
    assert order == ["patient", "newcomer"]


def test_one_try_takes_a_free_lock_from_the_dead(
    backend: EtcdServer, client: fencedlock.Client, name: str
) -> None:
    put_dead_places(backend, name, 2)
    lock = client.RLock(name)
    assert lock.acquire(blocking=False) is True
    lock.release()
    assert lock.acquire(timeout=0) is True
    lock.release()


def test_a_floor_is_never_lowered_on_an_idle_cluster(
    start: Callable[..., EtcdServer], connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(start().url)
    client.raise_floor(FencingToken("x", 1_000_000))
    client.raise_floor(FencingToken("x", 5_000))
    with client.RLock("x") as token:
        assert int(token) > 1_000_000
    client.raise_floor(token)
    with client.RLock("x") as later:
        assert later > token


def test_holds_whose_keys_are_megabytes_are_renewed_and_listed(
    backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client = connect(backend.url, ttl=3)
    locks = [client.RLock(f"{name}/{number:05}" + "/" * 3900) for number in range(400)]
    for lock in locks:
        lock.acquire()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        for lock in locks[::50]:
            lock.ensure_held()
        time.sleep(0.1)
    bound = client._table.backend
    assert sum(found.startswith(name) for found in bound.lock_names(name)) == len(locks)
    client.close()


def test_who_waits_for_another_threads_login_waits_no_longer_than_its_time(
    guarded: EtcdServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(f"etcd://root:sesame@{guarded.endpoint}", socket_timeout=1)
    seconds: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            client.inspect("x")
        seconds.append(time.monotonic() - began)

    guarded.freeze()
    try:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        guarded.thaw()
    assert len(seconds) == 8
    assert max(seconds) < 3


def give_up(lock: fencedlock.RLock) -> None:
    with pytest.raises(fencedlock.BackendUnavailableError):
        lock.acquire(timeout=4)


def test_what_was_lost_in_an_outage_blocks_nobody_after_it(
    own_server: Callable[..., EtcdServer], connect: Callable[..., fencedlock.Client]
) -> None:
    """Holds and places that are given up have to be removed on the server.

    A restart gives every lease a whole new term, so otherwise they would live for one more lease.
    """
    ttl = 6
    server = own_server(any_etcd())
    client = connect(server.url, ttl=ttl, socket_timeout=0.5)
    held, wanted = client.RLock("held"), client.FairLock("wanted")
    held.acquire()
    first = connect(server.url, ttl=ttl).RLock("wanted")
    first.acquire()
    waiter = threading.Thread(target=give_up, args=(wanted,))
    waiter.start()
    eventually(lambda: client.inspect("wanted").waiters)
    server.kill()
    with pytest.raises(fencedlock.BackendUnavailableError):
        connect(server.url, socket_timeout=0.2).RLock("x").acquire(False)
    waiter.join()
    assert held.lost.wait(2 * ttl)
    server.start()
    begun = time.monotonic()
    for name in ("held", "wanted"):
        next_one = connect(server.url, ttl=ttl).FairLock(name)
        assert next_one.acquire(timeout=2 * ttl)
        assert next_one.abandoned
        next_one.release()
    assert time.monotonic() - begun < ttl - 1.5
    for lock in (held, first):
        with pytest.raises(fencedlock.LockLostError):
            lock.release()


def test_a_grant_that_came_under_an_older_lease_is_tied_to_the_present_one(
    wire: EtcdProxy,
    backend: EtcdServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    """The answer of the grant was lost, and its lease is over by our clock, but not on the server.

    A holder that believes in the new lease must not lose the lock when the old lease ends.
    """
    remote = connect(wire.url, ttl=2, socket_timeout=0.3)
    with remote.RLock(f"{name}/first"):
        pass
    lock = remote.RLock(name)
    wire.rule = lambda request: LOSE_REPLY if wire.is_call(request, "acquire") else LOSE
    taken, let_go = threading.Event(), threading.Event()

    def take() -> None:
        assert lock.acquire(timeout=20)
        taken.set()
        let_go.wait(20)
        lock.release()

    waiter = threading.Thread(target=take)
    waiter.start()
    connections = backend.connections()
    look = M.RangeRequest(key=lock_keys("fencedlock", name).holder)
    (first,) = eventually(lambda: connections.call(calls.RANGE, look, 5).kvs)
    until = time.monotonic() + 3
    # Keep the old lease alive on the server, as a restart would.
    while time.monotonic() < until:
        connections.keep_alive(first.lease, look.key, 5)
        time.sleep(0.2)
    wire.rule = lambda request: None
    while not taken.wait(0.1):
        connections.keep_alive(first.lease, look.key, 5)
    (kv,) = connections.call(calls.RANGE, look, 5).kvs
    (hold,) = lock._settings.resource.holds.values()
    assert kv.lease == hold.claim.ticket.lease.id != first.lease
    let_go.set()
    waiter.join()
    connections.close()
