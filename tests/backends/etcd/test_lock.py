"""What can happen to a hold, or to a waiter, only on etcd."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fencedlock
from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.keys import lock_keys
from fencedlock.backends.etcd.lock import EtcdLock
from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.ticket import ticket_of
from fencedlock.clock import now_seconds
from tests.conftest import eventually
from tests.contenders import Contender, visit
from tests.etcd_servers import EtcdServer
from tests.proxy import HOLD

M = messages()


@pytest.fixture
def client(backend: EtcdServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(backend.url, ttl=10)


def revoke_leases_of(client: fencedlock.Client, backend: EtcdServer) -> None:
    """Revoke the client's leases on the server, without telling the client."""
    for lease in client._table.backend.leases._by_length.values():  # type: ignore[attr-defined]
        backend.ctl("lease", "revoke", f"{lease.id:x}")


class TestLeases:
    def test_a_holder_whose_lease_was_revoked_learns_at_its_next_beat(
        self, backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
    ) -> None:
        client, stranger = connect(backend.url, ttl=3), connect(backend.url, ttl=3)
        lock = client.RLock(name)
        lock.acquire()
        token = lock.token
        revoke_leases_of(client, backend)
        with stranger.RLock(name) as later:
            assert later > token
            assert stranger.RLock(name).abandoned
            assert lock.lost.wait(20)
            with pytest.raises(fencedlock.LockLostError):
                lock.release()
            assert stranger.inspect(name).token == int(later)
        with lock as again:
            assert again > later

    def test_a_waiter_whose_lease_was_revoked_queues_again(
        self,
        backend: EtcdServer,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        name: str,
    ) -> None:
        waiting = connect(backend.url, ttl=3)
        waiter = threading.Thread(target=visit, args=(waiting.FairLock(name),))
        with client.FairLock(name):
            waiter.start()
            eventually(lambda: client.inspect(name).waiters)
            revoke_leases_of(waiting, backend)
            eventually(lambda: not client.inspect(name).waiters)
            eventually(lambda: client.inspect(name).waiters)
        waiter.join(60)
        assert not waiter.is_alive()

    def test_an_idle_client_whose_lease_ran_out_locks_with_another(
        self, backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
    ) -> None:
        client = connect(backend.url, ttl=3)
        lock = client.RLock(name)
        with lock as before:
            pass
        revoke_leases_of(client, backend)
        with lock as after:
            assert after > before
            lock.renew()

    def test_a_client_has_one_lease_for_each_length_and_takes_it_along(
        self, backend: EtcdServer, connect: Callable[..., fencedlock.Client], name: str
    ) -> None:
        before = set(backend.ctl("lease", "list").split()[3:])
        with connect(backend.url, ttl=10) as client:
            locks = [
                client.RLock(f"{name}/{number}", ttl=ttl)
                for number in range(4)
                for ttl in (9.5, 10)
            ]
            for lock in locks[::2]:
                lock.acquire()
            locks[0].renew(ttl=20)
            # One of 10 s, one of 20 s, and one that all clients share.
            assert len(set(backend.ctl("lease", "list").split()[3:]) - before) <= 3
        assert len(set(backend.ctl("lease", "list").split()[3:]) - before) <= 1
        assert backend.leftovers(f"{name}/0") == set()

    def test_a_thread_that_ends_while_holding_loses_its_lock_though_others_keep_the_lease(
        self, client: fencedlock.Client, name: str
    ) -> None:
        with client.RLock(f"{name}/other", ttl=2):
            lock = client.RLock(name, ttl=2)
            thread = threading.Thread(target=lock.acquire)
            thread.start()
            thread.join()
            assert lock.acquire(timeout=10)
            assert lock.abandoned
            lock.release()


def test_a_forced_release_is_noticed_though_another_thread_of_the_client_has_the_lock_since(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    first, second = contender("thread", client), contender("thread", client)
    first.ask("make", name, ttl=2)
    assert first.ask("acquire", name)
    assert client.force_release(name) is not None
    assert second.ask("acquire", name)
    assert first.ask("wait_lost", name, 5)
    with pytest.raises(fencedlock.LockLostError):
        first.ask("release", name)
    assert client.inspect(name).token == int(second.ask("token", name))


def test_a_delayed_delete_of_an_old_claim_leaves_the_new_holder_alone(
    backend: EtcdServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    """A release must not delete the key of a later holder.

    etcd's own recipe deletes its key by name. If that comes late, or in another session, it deletes
    the key of the present holder.
    """
    proxy = backend.proxy()
    try:
        proxy.rule = lambda request: (
            "hold" if not proxy.held and proxy.is_call(request, "release") else None
        )
        with connect(proxy.url, ttl=3, socket_timeout=0.3).RLock(name):
            pass
        (held,) = proxy.held
        with client.RLock(name) as token:
            proxy.held = [held]
            proxy.deliver()
            assert client.inspect(name).token == int(token)
            client.RLock(name).renew()
            client.RLock(name).ensure_held()
    finally:
        proxy.close()


def test_a_compaction_during_a_wait_costs_nothing(
    backend: EtcdServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    waiters = [contender("thread", client), contender("process", client)]
    with client.FairLock(name):
        for waiter in waiters:
            waiter.tell("acquire", name)
        eventually(lambda: len(client.inspect(name).waiters) == 2)
        connections = backend.connections()
        revision = connections.call(calls.RANGE, M.RangeRequest(key=b"x"), 10).header.revision
        connections.call(calls.COMPACT, M.CompactRequest(revision=revision, physical=True), 10)
        connections.close()
    released = time.monotonic()
    first = eventually(lambda: [waiter for waiter in waiters if waiter.answered()])[0]
    assert time.monotonic() - released < 5
    first.ask("release", name) if first.answer() else None
    assert waiters[1 - waiters.index(first)].answer() is True


def test_a_watch_that_the_server_cancels_is_opened_anew(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    """The server cancels a watch, for example, if a compaction overtakes a slow watcher."""
    waiter = contender("thread", client)
    inbox = client._table.backend.inbox  # type: ignore[attr-defined]
    with client.FairLock(name):
        waiter.tell("acquire", name)
        bound = client._table.resource(name).bound
        assert isinstance(bound, EtcdLock)
        eventually(lambda: inbox.follows(bound.keys))
        watch, stream = inbox._watches[bound.keys.queue], inbox._responses
        inbox._send(M.WatchRequest(cancel_request=M.WatchCancelRequest(watch_id=watch.id)))
        eventually(lambda: inbox._responses is not stream and inbox.follows(bound.keys))
        released = time.monotonic()
    assert waiter.answer() is True
    assert time.monotonic() - released < 5


def test_others_hear_who_leaves_the_queue_and_who_stood_before_them(
    backend: EtcdServer,
    connect: Callable[..., fencedlock.Client],
    client: fencedlock.Client,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    """Claims that join the queue are not watched, so that they wake nobody.

    Claims that leave it are watched. Otherwise the others would wait for their turns.
    """
    holder, other = connect(backend.url, ttl=10), connect(backend.url, ttl=10)
    bound, inbox = client._table.resource(name).bound, client._table.backend.inbox  # type: ignore[attr-defined]
    assert isinstance(bound, EtcdLock)

    def line() -> list[str]:
        watch = inbox._watches.get(bound.keys.queue)
        return (
            []
            if watch is None or not watch.queue.revision
            else [place.partition("/")[0] for place in watch.queue._places]
        )

    for _ in range(3):  # all rounds use the same watch
        waiter = contender("thread", client)
        with holder.FairLock(name):
            cancellation = fencedlock.Cancellation()
            leaver = threading.Thread(
                target=wait_until_cancelled, args=(other.FairLock(name), cancellation)
            )
            leaver.start()
            eventually(lambda: len(client.inspect(name).waiters) == 1)
            waiter.tell("acquire", name)
            eventually(lambda: line() == [other.id, client.id])
            cancellation.cancel()
            eventually(lambda: line() == [client.id])
            leaver.join()
        assert waiter.answer() is True
        waiter.ask("release", name)


def test_places_use_the_same_key_again(
    backend: EtcdServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    """Claims use the same keys for their places again and again.

    etcd's index keeps a deleted key until it is compacted. If each claim had a key of its own, it
    would make all later ones slower.
    """
    keys, connections = lock_keys("fencedlock", name), backend.connections()

    def places(revision: int = 0) -> Any:
        request = M.RangeRequest(key=keys.queue, range_end=keys.queue_end, revision=revision)
        return connections.call(calls.RANGE, request, 10)

    waiting, before = connect(backend.url, ttl=10), places().header.revision
    for _ in range(5):
        waiter = threading.Thread(target=visit, args=(waiting.FairLock(name),))
        with client.FairLock(name):
            waiter.start()
            eventually(lambda: client.inspect(name).waiters)
            assert waiting.FairLock(name).acquire(timeout=0.01) is False
        waiter.join()
    after = places().header.revision
    seen = [
        (kv.key, kv.create_revision)
        for revision in range(before, after + 1)
        for kv in places(revision).kvs
    ]
    connections.close()
    assert len(set(seen)) == 10
    assert len({key for key, _ in seen}) == 2


def test_a_withdrawal_that_was_sent_twice_leaves_the_next_place_alone(
    backend: EtcdServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    """It is sent once to each endpoint, and the first copy arrives when another claim waits."""
    proxies = [backend.proxy(), backend.proxy()]
    try:
        remote = connect(
            "etcd://" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies), ttl=10
        )
        with remote.RLock("warm up"):
            remote._table.listen(5)
        waiter = contender("thread", remote)
        with client.FairLock(name):
            for proxy in proxies:
                proxy.rule = lambda request: (
                    HOLD
                    if proxies[0].is_call(request, "withdraw") and not any(p.held for p in proxies)
                    else None
                )
            assert remote.FairLock(name).acquire(timeout=0.1) is False
            (slow,) = [proxy for proxy in proxies if proxy.held]
            eventually(lambda: client.inspect(name).waiters == ())
            waiter.tell("acquire", name)
            (place,) = eventually(lambda: client.inspect(name).waiters)
            slow.deliver()
            assert [each.owner for each in client.inspect(name).waiters] == [place.owner]
        assert waiter.answer() is True
        waiter.ask("release", name)
    finally:
        for proxy in proxies:
            proxy.close()


def wait_until_cancelled(lock: fencedlock.RLock, cancellation: fencedlock.Cancellation) -> None:
    with pytest.raises(fencedlock.AcquireCancelledError):
        lock.acquire(cancel=cancellation)


class TestUsers:
    def test_an_expired_token_during_acquire_wait_and_renewal_is_renewed(
        self,
        guarded: EtcdServer,
        connect: Callable[..., fencedlock.Client],
        contender: Callable[..., Contender],
    ) -> None:
        url = f"etcd://root:sesame@{guarded.endpoint}"
        client, waiting = connect(url, ttl=30), connect(url, ttl=30)
        waiter = contender("thread", waiting)
        lock = client.FairLock("x")
        lock.acquire()
        with waiting.RLock("y"):
            pass
        clients = [each._table.backend.connections for each in (client, waiting)]  # type: ignore[attr-defined]
        tokens = [each._auth_token for each in clients]
        waiter.tell("acquire", "x")
        eventually(lambda: lock.info().waiters)
        # Authentication tokens last for a second unless they are used. Beats are sent every 10
        # seconds, or every 3.3 seconds.
        until = time.monotonic() + 11
        while time.monotonic() < until:
            lock.ensure_held()
            time.sleep(0.05)
        lock.renew()
        with lock:
            pass
        released = time.monotonic()
        lock.release()
        assert waiter.answer() is True
        assert time.monotonic() - released < 5
        assert lock.acquire(False) is False
        waiter.ask("release", "x")
        assert not {each._auth_token for each in clients} & set(tokens)
        time.sleep(2.5)  # an idle client's token expires
        assert lock.acquire(False)
        lock.release()

    def test_who_may_not_is_told_so(
        self, guarded: EtcdServer, connect: Callable[..., fencedlock.Client]
    ) -> None:
        with pytest.raises(fencedlock.BackendMisconfiguredError, match="permission denied"):
            connect(f"etcd://joe:secret@{guarded.endpoint}").RLock("x").acquire()
        with pytest.raises(
            fencedlock.BackendMisconfiguredError, match=r"etcd://user:password@host"
        ):
            connect(guarded.url).RLock("x").acquire()

    def test_the_role_that_the_documentation_names_is_enough(
        self,
        guarded: EtcdServer,
        connect: Callable[..., fencedlock.Client],
        contender: Callable[..., Contender],
    ) -> None:
        named = "etcdctl role grant-permission locker --prefix=true readwrite fencedlock/"
        assert named in (Path(__file__).parents[3] / "docs" / "operations.rst").read_text()
        guarded.ctl("role", "add", "locker", user="root:sesame")
        guarded.ctl(*named.split()[1:], user="root:sesame")
        guarded.ctl("user", "grant-role", "joe", "locker", user="root:sesame")
        client = connect(f"etcd://joe:secret@{guarded.endpoint}", ttl=3)
        waiter = contender("thread", client)
        lock = client.FairLock("x")
        with lock, lock:
            waiter.tell("acquire", "x")
            eventually(lambda: lock.info().waiters)
            lock.renew()
            assert [info.name for info in client.locks()] == ["x"]
            released = time.monotonic()
        assert waiter.answer() is True
        assert time.monotonic() - released < 2
        assert client.force_release("x") is not None


def connections_to(port: int) -> int:
    """Return the number of open TCP connections of this process to this port."""
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(str(fd.readlink()))
        except OSError:
            pass
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if (
                words[2].endswith(f":{port:04X}")
                and words[3] == "01"
                and f"socket:[{words[9]}]" in inodes
            ):
                count += 1
    return count


@pytest.mark.timeout(400)  # enough even if eight busy processes run at the same time
def test_a_thousand_waiting_claims_need_one_stream_one_lease_and_one_connection(
    backend: EtcdServer,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    holding = contender("process", connect(backend.url, ttl=60))
    names = [f"{name}/{number}" for number in range(1000)]
    for each in names:
        assert holding.ask("acquire", each)
    assert connections_to(backend.port) == 0
    leases = set(backend.ctl("lease", "list").split()[3:])
    crowd = connect(backend.url, ttl=60)
    inbox = crowd._table.backend.inbox  # type: ignore[attr-defined]
    before = threading.active_count()
    old_limit = threading.stack_size(256 * 1024)
    waiters = [threading.Thread(target=visit, args=(crowd.FairLock(each),)) for each in names]
    threading.stack_size(old_limit)
    for waiter in waiters:
        waiter.start()
    eventually(
        lambda: (
            len(inbox._watches) == 1000
            and all(watch.queue.revision for watch in inbox._watches.values())
        ),
        200,
    )
    # On a busy machine a late answer has the channel replaced, and the old one lives on a while.
    eventually(lambda: connections_to(backend.port) == 1)
    assert len(crowd._table.backend.connections._channels) == 1  # type: ignore[attr-defined]
    assert len(crowd._table.backend.connections._streams) == 1  # type: ignore[attr-defined]
    assert len(set(backend.ctl("lease", "list").split()[3:]) - leases) == 1

    def ours() -> set[str]:
        return {
            thread.name
            for thread in threading.enumerate()
            if thread not in waiters and thread.name.startswith("fencedlock")
        }

    # The heartbeat's thread starts with the first beat.
    eventually(lambda: ours() == {"fencedlock-inbox", "fencedlock-heartbeat"})
    assert threading.active_count() - len(waiters) - before <= 4  # gRPC has two for the stream
    for each in names:
        holding.ask("release", each)
    for waiter in waiters:
        waiter.join(100)
        assert not waiter.is_alive()


@pytest.mark.parametrize("parent", ["idle", "waiting"])
def test_forked_children_can_lock_and_release(
    parent: str, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    other, waiter = contender("process", client), contender("thread", client)
    held = f"{name}/held"
    assert other.ask("acquire", held)
    with client.RLock(name):
        pass
    if parent == "waiting":
        waiter.tell("acquire", held)
        eventually(lambda: client.inspect(held).waiters)
    for number in range(10):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                lock = client.FairLock(f"{name}/{number % 2}")
                for _ in range(3):
                    with lock as token, lock as nested:
                        status = 0 if token == nested else 2
                if client.FairLock(held).acquire(False) or client.FairLock(held).acquire(
                    timeout=0.05
                ):
                    status = 3
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with client.RLock(name) as token:
            assert token
    other.ask("release", held)
    if parent == "waiting":
        assert waiter.answer() is True


def test_a_revision_that_goes_back_is_not_believed(
    start: Callable[..., EtcdServer], connect: Callable[..., fencedlock.Client], tmp_path: Path
) -> None:
    server = start()
    lock = connect(server.url, outage_timeout=20).RLock("x")
    for _ in range(3):
        with lock:
            pass
    server.kill()
    (server.folder / "data").rename(tmp_path / "lost")
    server.start()
    with pytest.raises(fencedlock.BackendMisconfiguredError, match="--bump-revision"):
        lock.acquire()
    assert server.leftovers("x") <= {":withdrawn"}
    with connect(server.url).RLock("x") as token:
        assert int(token) > 0


def test_what_depends_on_a_lease_is_not_forgotten_while_a_renewal_may_still_succeed(
    client: fencedlock.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the keys of a lost hold stay for as long as other locks keep the lease alive."""
    backend: Any = client._table.backend
    lock = client.RLock(name)
    lock.acquire()
    hold = lock._owned()
    lease, since = ticket_of(hold).lease, now_seconds()
    asked, may_answer = threading.Event(), threading.Event()
    keep_alive = backend.connections.keep_alive

    def late(*arguments: Any) -> Any:
        asked.set()
        may_answer.wait(60)
        return keep_alive(*arguments)

    monkeypatch.setattr(backend.connections, "keep_alive", late)
    renewal = threading.Thread(target=lambda: backend.leases.renew(lease, 60))
    renewal.start()
    assert asked.wait(60)
    lease.deadline = since
    assert backend.forgets_at(hold, since) == float("inf")
    may_answer.set()
    renewal.join(60)
    assert backend.forgets_at(hold, since) == lease.deadline > since
    lease.deadline = since
    assert backend.forgets_at(hold, since) == since
    assert lease.gone
    with contextlib.suppress(fencedlock.LockLostError):
        lock.release()


def test_nobody_is_passed_over_between_two_streams_of_events(
    client: fencedlock.Client,
    backend: EtcdServer,
    connect: Callable[..., fencedlock.Client],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what was known before, a lock may seem free, and its waiters dead."""
    waiting: Any = connect(backend.url, ttl=10)
    inbox, keys = waiting._table.backend.inbox, waiting._table.backend.bind_lock(name).keys
    with client.RLock(name):
        waiter = threading.Thread(target=visit, args=(waiting.FairLock(name),))
        waiter.start()
        eventually(lambda: inbox.follows(keys))
        again = threading.Event()
        monkeypatch.setattr(inbox, "_read_until_cut", lambda: again.wait(60))
        inbox._responses.cancel()
        eventually(lambda: not inbox.follows(keys))
        monkeypatch.undo()
        again.set()
    waiter.join(60)
    assert not waiter.is_alive()
