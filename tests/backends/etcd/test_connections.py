"""The calls to an etcd cluster: answers, fail-over of endpoints, errors, users, TLS, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from fencedlock import BackendError, BackendMisconfiguredError, BackendUnavailableError
from fencedlock.backends.etcd import connections as wire
from fencedlock.backends.etcd.connections import Connections, LeaseGoneError
from fencedlock.backends.etcd.messages import CREATE, EQUAL, messages
from fencedlock.backends.etcd.settings import Settings
from tests.etcd_servers import EtcdServer
from tests.servers import free_port

M = messages()


@pytest.fixture
def open_connection() -> Iterator[Callable[..., Connections]]:
    made: list[Connections] = []

    def make(*endpoints: str, **settings: str | bool) -> Connections:
        made.append(Connections(Settings(endpoints, **settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def status(connection: Connections, seconds: float = 10) -> str:
    return str(connection.call(wire.STATUS, M.StatusRequest(), seconds).version)


class TestCalls:
    def test_transactions_and_leases(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        connection = open_connection(start().endpoint)
        lease = connection.call(wire.LEASE_GRANT, M.LeaseGrantRequest(TTL=60), 10)
        assert lease.TTL == 60
        create = M.TxnRequest(
            compare=[
                M.Compare(
                    result=EQUAL, target=CREATE, key=b"p/", range_end=b"p0", create_revision=0
                )
            ],
            success=[M.RequestOp(request_put=M.PutRequest(key=b"p/1", value=b"x", lease=lease.ID))],
            failure=[M.RequestOp(request_range=M.RangeRequest(key=b"p/", range_end=b"p0"))],
        )
        first, again = (connection.call(wire.TXN, create, 10) for _ in range(2))
        assert (first.succeeded, again.succeeded) == (True, False)
        (found,) = again.responses[0].response_range.kvs
        assert (found.key, found.create_revision, found.lease) == (
            b"p/1",
            first.header.revision,
            lease.ID,
        )
        assert [connection.keep_alive(each, b"p/", 10)[1] for each in (lease.ID, 12345)] == [60, 0]
        connection.call(wire.LEASE_REVOKE, M.LeaseRevokeRequest(ID=lease.ID), 10)
        assert connection.call(wire.RANGE, M.RangeRequest(key=b"p/1"), 10).count == 0

    def test_errors_are_told_in_our_words(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        connection = open_connection(start().endpoint)
        with pytest.raises(LeaseGoneError, match="requested lease not found"):
            connection.call(wire.LEASE_REVOKE, M.LeaseRevokeRequest(ID=77), 10)
        with pytest.raises(BackendError, match="key is not provided"):
            connection.call(wire.PUT, M.PutRequest(key=b""), 10)
        connection.close()
        with pytest.raises(BackendUnavailableError, match="closed"):
            status(connection)

    def test_a_watch_sees_what_happens(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        connection = open_connection(start().endpoint)
        done = threading.Event()

        def requests() -> Iterator[object]:
            yield M.WatchRequest(
                create_request=M.WatchCreateRequest(key=b"w/", range_end=b"w0", watch_id=5)
            )
            done.wait(20)

        with connection.stream(wire.WATCH, requests()) as stream:
            created = next(stream)
            assert (created.created, created.watch_id) == (True, 5)
            connection.call(wire.PUT, M.PutRequest(key=b"w/1", value=b"x"), 10)
            (event,) = next(stream).events
            assert (event.type, event.kv.key) == (0, b"w/1")
        done.set()


class TestEndpoints:
    def test_a_dead_one_is_passed_over_and_remembered(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        connection = open_connection(f"127.0.0.1:{free_port()}", start().endpoint)
        assert status(connection).startswith("3.")
        assert connection._index == 1

    def test_a_frozen_one_is_passed_over_in_time(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        frozen, alive = start(), start()
        connection = open_connection(frozen.endpoint, alive.endpoint)
        assert status(connection)
        frozen.freeze()
        assert status(connection, 2)
        assert connection._index == 1

    def test_without_any_it_ends_in_time_and_comes_back(
        self, start: Callable[..., EtcdServer], open_connection: Callable[..., Connections]
    ) -> None:
        server = start()
        connection = open_connection(server.endpoint, f"127.0.0.1:{free_port()}")
        assert status(connection)
        server.kill()
        began = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="gave no answer in time"):
            status(connection, 1)
        assert time.monotonic() - began < 10
        server.start()
        give_up_at = time.monotonic() + 60
        while True:
            try:
                assert status(connection, 1)
                break
            except BackendUnavailableError:
                assert time.monotonic() < give_up_at


class TestUsers:
    def test_a_user_comes_in_and_an_expired_token_is_renewed(
        self, guarded: EtcdServer, open_connection: Callable[..., Connections]
    ) -> None:
        connection = open_connection(guarded.endpoint, user="root", password="sesame")
        connection.call(wire.PUT, M.PutRequest(key=b"a", value=b"1"), 10)
        first = connection._auth_token
        connection._auth_token = "expired"
        connection.call(wire.PUT, M.PutRequest(key=b"a", value=b"2"), 10)
        assert connection._auth_token not in (first, "expired", None)
        # Adding a user changes the revision of the users.
        guarded.ctl("user", "add", "new:new", user="root:sesame")
        connection.call(wire.PUT, M.PutRequest(key=b"a", value=b"3"), 10)

    def test_others_do_not(
        self, guarded: EtcdServer, open_connection: Callable[..., Connections]
    ) -> None:
        put = M.PutRequest(key=b"a", value=b"1")
        with pytest.raises(BackendMisconfiguredError, match=r"etcd://user:password@host"):
            open_connection(guarded.endpoint).call(wire.PUT, put, 10)
        with pytest.raises(BackendMisconfiguredError, match="authentication failed"):
            open_connection(guarded.endpoint, user="root", password="wrong").call(wire.PUT, put, 10)
        with pytest.raises(BackendMisconfiguredError, match="permission denied"):
            open_connection(guarded.endpoint, user="joe", password="secret").call(wire.PUT, put, 10)


def test_tls_and_mutual_tls(
    start: Callable[..., EtcdServer], open_connection: Callable[..., Connections], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, certificate in (
        ("server", authority.issue_cert("127.0.0.1", "localhost")),
        ("client", authority.issue_cert("joe")),
    ):
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key"))
    server = start(cert_file=cert, key_file=key, trusted_ca_file=ca, client_cert_auth="true")
    ours = {"cert": str(tmp_path / "client.pem"), "key": str(tmp_path / "client.key")}
    assert status(open_connection(server.endpoint, tls=True, ca=ca, **ours))
    with pytest.raises(BackendUnavailableError):
        status(open_connection(server.endpoint, tls=True, ca=ca), 1)
    with pytest.raises(BackendUnavailableError):
        status(open_connection(server.endpoint), 1)


@pytest.mark.parametrize("parent", ["idle", "calling"])
def test_a_forked_child_calls_by_itself(
    start: Callable[..., EtcdServer], open_connection: Callable[..., Connections], parent: str
) -> None:
    connection = open_connection(start().endpoint)
    assert status(connection)
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            status(connection)

    thread = threading.Thread(target=call)
    if parent == "calling":
        thread.start()
    try:
        child = os.fork()
        if child == 0:
            ended = 1
            try:
                connection.forget()
                status(connection)
                ended = 0
            finally:
                os._exit(ended)
        assert os.waitpid(child, 0)[1] == 0
        assert status(connection)
    finally:
        stop.set()
        if parent == "calling":
            thread.join()


def test_a_fork_knows_of_a_channel_that_was_opened_while_it_waited(
    start: Callable[..., EtcdServer],
    open_connection: Callable[..., Connections],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fork has to wait for the end of gRPC's threads.

    Otherwise the child may hang in its first call.
    """
    connection, inside, waits = (
        open_connection(start().endpoint),
        threading.Event(),
        threading.Event(),
    )
    wait_until_empty = connection._gate.wait_until_empty

    def tell_and_wait(timeout_seconds: float) -> None:
        waits.set()
        wait_until_empty(timeout_seconds)

    def call() -> None:
        visit = object()
        connection._gate.admit(visit)
        inside.set()
        assert waits.wait(20)
        connection._channel(0)
        del connection._gate.inside[visit]

    monkeypatch.setattr(connection._gate, "wait_until_empty", tell_and_wait)
    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(20)
    assert connection.before_fork() is True
    connection.after_fork_in_parent()
    thread.join()
    assert connection.before_fork() is False
    connection.after_fork_in_parent()
    assert status(connection)


FORK_AT_ONCE = """
import os, sys, threading
import fencedlock
client = fencedlock.connect(sys.argv[1], ttl=5)
thread = threading.Thread(target=lambda: client.RLock(f"parent {os.getpid()}").acquire(False))
thread.start()
child = os.fork()
if not child:
    os._exit(0 if client.RLock(f"child {os.getpid()}").acquire(timeout=8) else 1)
thread.join()
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_child_that_is_forked_during_the_first_call_is_not_stuck(
    start: Callable[..., EtcdServer],
) -> None:
    """The fork must not happen in the middle of the import of gRPC, which takes a while.

    Otherwise the child would wait for ever for a thread that it does not have.
    """
    server = start()
    for _ in range(3):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORK_AT_ONCE, server.url], check=True, timeout=30
        )
