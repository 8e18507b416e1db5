"""Lost replies, lost requests and late packets do no harm.

They never cause a wrong count, a lost lock or a lock that nobody holds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD, HOLD_AND_CUT, LOSE, LOSE_REPLY
from tests.servers import LockServer

TTL_SECONDS = 3
REQUEST_SECONDS = 0.25


@pytest.fixture
def wire(backend: LockServer, proxy: Callable[[LockServer], Any]) -> Any:
    return proxy(backend)


@pytest.fixture
def remote(wire: Any, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    """A client behind the proxy, whose requests time out soon.

    It has already opened everything that it opens only once.
    """
    remote = connect(wire.url, ttl=TTL_SECONDS, socket_timeout=REQUEST_SECONDS)
    with remote.RLock("warm up"):
        remote._table.listen(5)
    return remote


def nth(wire: Any, number: int, fate: str) -> Callable[[Any], str | None]:
    """Return a rule that inflicts this fate on the n-th operation."""
    calls = iter(range(1_000_000))

    def rule(request: Any) -> str | None:
        return fate if wire.is_operation(request) and next(calls) == number else None

    return rule


def is_tidy(server: LockServer, name: str) -> bool:
    return server.leftovers(name) <= {":withdrawn"}


def life_of_a_hold(remote: fencedlock.Client, client: fencedlock.Client, name: str) -> None:
    lock = remote.FairLock(name)
    assert lock.acquire()
    token = lock.token
    assert lock.acquire()
    eventually(lambda: client.inspect(name).count == 2)
    lock.renew()
    assert lock.acquire()
    eventually(lambda: client.inspect(name).count == 3)
    lock.release()
    eventually(lambda: client.inspect(name).count == 2)
    lock.release()
    eventually(lambda: client.inspect(name).count == 1)
    assert lock.token == token
    assert client.inspect(name).token == int(token)
    lock.release()
    eventually(lambda: not client.inspect(name).locked)


def life_of_a_waiter(remote: fencedlock.Client, client: fencedlock.Client, name: str) -> None:
    with client.RLock(name) as token:
        assert remote.FairLock(name).acquire(timeout=0.2) is False
        eventually(lambda: not client.inspect(name).waiters)
        assert client.inspect(name).token == int(token)


def life_of_a_kept_lock(remote: fencedlock.Client, client: fencedlock.Client, name: str) -> None:
    lock = remote.FairLock(name)
    assert lock.acquire()
    begun = time.monotonic()
    lock.release(keep=0.9)
    assert not client.RLock(name).acquire(False) or time.monotonic() > begun + 0.9
    eventually(lambda: not client.inspect(name).locked, TTL_SECONDS + 2)
    assert time.monotonic() > begun + 0.9


@pytest.mark.parametrize("fate", [LOSE_REPLY, LOSE])
@pytest.mark.parametrize("life", [life_of_a_hold, life_of_a_waiter, life_of_a_kept_lock])
def test_a_lost_packet_at_any_position_changes_nothing(
    life: Callable[..., None],
    fate: str,
    backend: LockServer,
    client: fencedlock.Client,
    remote: fencedlock.Client,
    wire: Any,
    name: str,
) -> None:
    before = len(wire.requests)
    life(remote, client, f"{name}/none")
    positions = sum(wire.is_operation(request) for request in wire.requests[before:])
    assert positions >= 2
    for position in range(positions):
        each = f"{name}/{position}"
        wire.rule = nth(wire, position, fate)
        try:
            life(remote, client, each)
        except fencedlock.BackendUnavailableError:
            # A manual renewal, and an acquire whose time is up, may raise the error. Then nothing
            # may be left behind.
            wire.rule = lambda request: None
            lock = remote.FairLock(each)
            while lock._is_owned():
                lock.release()
        wire.rule = lambda request: None
        successor = client.FairLock(each)
        assert successor.acquire(timeout=TTL_SECONDS / 2), f"position {position}: held by nobody"
        assert client.inspect(each).count == 1
        successor.release()
        eventually(partial(is_tidy, backend, each))


class TestLatePackets:
    """The network holds each packet back until its sender has gone on.

    By then the hold has ended, and another hold has begun.
    """

    def next_hold_is_untouched(
        self, backend: LockServer, client: fencedlock.Client, wire: Any, name: str
    ) -> None:
        """Deliver the held packets while the lock is free, and again while another holds it."""
        held = list(wire.held)
        assert held
        wire.deliver()
        assert not client.inspect(name).locked, "a late packet took the lock for nobody"
        assert not client.inspect(name).waiters
        with client.FairLock(name) as token, client.FairLock(name):
            before = client.inspect(name)
            wire.held = held
            wire.deliver()
            after = client.inspect(name)
            assert (after.owner, after.token, after.count) == (before.owner, int(token), 2)
            assert after.remaining <= before.remaining
            assert not after.waiters
        assert backend.leftovers(name) <= {":withdrawn"}

    def test_acquire(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        self.hold_first(wire, "acquire")
        with remote.FairLock(name):
            pass
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_acquire_that_was_given_up(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        wire.rule = lambda request: HOLD if wire.is_call(request, "acquire") else None
        with pytest.raises(fencedlock.BackendUnavailableError):
            remote.FairLock(name).acquire(timeout=REQUEST_SECONDS)
        wire.wait_for(lambda: any(wire.is_call(request, "withdraw") for request in wire.requests))
        eventually(lambda: backend.leftovers(name) <= {":withdrawn"})
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_acquire_on_a_connection_that_broke(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        """The packet arrives before its time is up.

        It has no effect only because the release has told the server that this claim has ended.
        """
        wire.rule = lambda request: (
            HOLD_AND_CUT if not wire.held and wire.is_call(request, "acquire") else None
        )
        with remote.FairLock(name):
            pass
        assert backend.leftovers(name) == {":withdrawn"}
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_acquire_that_was_interrupted(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        wire: Any,
        ctrl_c: Callable[[], None],
        name: str,
    ) -> None:
        """Ctrl-C comes while the request is under way, so the withdrawal overtakes the request."""
        lock = connect(wire.url, ttl=60).FairLock(name)
        with connect(wire.url, ttl=60).RLock("warm up"):
            pass
        self.hold_first(wire, "acquire")

        def interrupt() -> None:
            wire.wait_for(lambda: bool(wire.held))
            ctrl_c()

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        interrupter.join()
        self.next_hold_is_untouched(backend, client, wire, name)

    @pytest.mark.parametrize("blocking", [True, False])
    def test_acquire_of_a_client_that_was_closed(
        self,
        blocking: bool,
        backend: LockServer,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        wire: Any,
        name: str,
    ) -> None:
        """Another thread closes the client while the request is under way."""
        remote = connect(wire.url, ttl=60, socket_timeout=3)
        with remote.RLock("warm up"):
            remote._table.listen(5)
        lock, errors = remote.FairLock(name), []

        def acquire() -> None:
            try:
                lock.acquire(blocking)
            except fencedlock.FencedLockError as error:
                errors.append(error)

        self.hold_first(wire, "acquire")
        thread = threading.Thread(target=acquire)
        thread.start()
        wire.wait_for(lambda: bool(wire.held))
        remote.close()
        self.next_hold_is_untouched(backend, client, wire, name)
        thread.join()
        assert errors

    @pytest.mark.parametrize("fate", [HOLD, HOLD_AND_CUT])
    def test_nested_acquire(
        self,
        fate: str,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        """The packet arrives too late, or in time if its connection is also cut.

        If it arrives in time, only its operation number shows that it is old.
        """
        with remote.FairLock(name):
            wire.rule = lambda request: (
                fate if not wire.held and wire.is_call(request, "renew") else None
            )
            with remote.FairLock(name):
                assert client.inspect(name).count == 2
            eventually(lambda: client.inspect(name).count == 1)
            held = list(wire.held)
            wire.deliver()  # within the same hold, it must not set the count back
            assert client.inspect(name).count == 1
        wire.held = held
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_renewal(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        with remote.FairLock(name) as token:
            self.hold_first(wire, "renew")
            remote.FairLock(name).renew(ttl=2 * TTL_SECONDS)
            assert remote.FairLock(name).token == token
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_release(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        with remote.FairLock(name):
            self.hold_first(wire, "release")
        assert not client.inspect(name).locked
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_withdrawal(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        name: str,
    ) -> None:
        with client.FairLock(name):
            self.hold_first(wire, "withdraw")
            assert remote.FairLock(name).acquire(timeout=0.1) is False
            eventually(lambda: not client.inspect(name).waiters)
        self.next_hold_is_untouched(backend, client, wire, name)

    def test_withdrawal_while_its_client_waits_again(
        self,
        client: fencedlock.Client,
        remote: fencedlock.Client,
        wire: Any,
        contender: Callable[..., Contender],
        name: str,
    ) -> None:
        waiter = contender("thread", remote)
        with client.FairLock(name):
            self.hold_first(wire, "withdraw")
            assert remote.FairLock(name).acquire(timeout=0.1) is False
            eventually(lambda: not client.inspect(name).waiters)
            waiter.tell("acquire", name)
            (place,) = eventually(lambda: client.inspect(name).waiters)
            wire.deliver()
            assert [each.owner for each in client.inspect(name).waiters] == [place.owner]
        assert waiter.answer() is True
        waiter.ask("release", name)

    @staticmethod
    def hold_first(wire: Any, kind: str, *words: bytes) -> None:
        wire.rule = lambda request: (
            HOLD if not wire.held and wire.is_call(request, kind, *words) else None
        )

    def test_acquire_of_a_hold_that_was_lost(
        self,
        backend: LockServer,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        wire: Any,
        name: str,
    ) -> None:
        """The lock was taken from its holder, and only then its first packet arrives."""
        lock = connect(wire.url, ttl=60).FairLock(name)
        with lock:
            pass
        wire.rule = lambda request: (
            HOLD_AND_CUT if not wire.held and wire.is_call(request, "acquire") else None
        )
        lock.acquire()
        assert wire.held
        client.force_release(name)
        with pytest.raises(fencedlock.LockLostError):
            lock.renew()
        with pytest.raises(fencedlock.LockLostError):
            lock.release()
        eventually(lambda: backend.leftovers(name) == {":withdrawn"})
        wire.deliver()
        assert not client.inspect(name).locked


def test_a_late_forced_release_leaves_the_next_hold_alone(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with lock as before:
        pass
    with lock as token:
        assert (
            client._table.resource(name).bound.force_release(int(before), REQUEST_SECONDS) is False
        )
        assert client.inspect(name).token == int(token)
        lock.renew()


@pytest.mark.parametrize("used", [False, True])
def test_a_grant_that_is_read_after_its_lease_is_not_used(
    used: bool,
    backend: LockServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    wire: Any,
    name: str,
) -> None:
    """The process is frozen between its request and the answer.

    When it wakes, a successor holds the lock.
    """
    frozen = contender("process", connect(wire.url, ttl=0.5))
    frozen.ask("acquire", f"{name}/warm up")
    if used:  # otherwise the grant is not the ordinary one
        with client.FairLock(name):
            pass

    def freeze(request: Any) -> None:
        if wire.is_call(request, "acquire"):
            wire.rule = lambda request: None
            frozen.freeze()

    wire.rule = freeze
    frozen.tell("acquire", name)
    eventually(lambda: client.inspect(name).locked)
    with client.FairLock(name) as token:
        frozen.thaw()
        assert not frozen.answered(0.2)
    assert frozen.answer() is True
    assert frozen.ask("token", name) > token
    frozen.ask("release", name)
    eventually(partial(is_tidy, backend, name))


def test_a_shorter_lease_whose_answer_is_lost_is_believed(
    remote: fencedlock.Client, client: fencedlock.Client, wire: Any, name: str
) -> None:
    lock = remote.RLock(name, ttl=30)
    with lock:
        wire.rule = lambda request: LOSE_REPLY if wire.is_call(request, "renew") else None
        with pytest.raises(fencedlock.BackendUnavailableError):
            lock.renew(ttl=2)
        assert lock.remaining() <= 2
        wire.rule = lambda request: None


class TestBeatsGoOn:
    """A healthy hold is renewed, whatever else goes wrong."""

    def survives(self, lock: fencedlock.RLock, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lock.ensure_held()
            time.sleep(0.02)

    def test_while_a_release_is_not_answered(
        self, connect: Callable[..., fencedlock.Client], wire: Any, name: str
    ) -> None:
        client = connect(wire.url, ttl=30, socket_timeout=1)
        stuck, healthy = client.RLock(f"{name}/stuck"), client.RLock(f"{name}/healthy", ttl=1.5)
        stuck.acquire()
        with healthy:
            wire.rule = lambda request: (
                LOSE
                if wire.is_call(request, "release") and wire.mentions(request, b"stuck")
                else None
            )
            stuck.release()
            self.survives(healthy, 3)
            wire.rule = lambda request: None

    def test_after_an_undo_that_is_refused(self, remote: fencedlock.Client) -> None:
        def refuse(timeout_seconds: float) -> None:
            raise fencedlock.BackendError("WRONGTYPE")

        done = threading.Event()
        remote._table.heartbeat.undo("one that is refused", refuse, lambda: time.monotonic() + 5)
        remote._table.heartbeat.undo(
            "one that works", lambda timeout_seconds: done.set(), lambda: time.monotonic() + 5
        )
        assert done.wait(10)


def test_closing_does_not_wait_for_each_hold_of_a_silent_server(
    connect: Callable[..., fencedlock.Client], wire: Any, name: str
) -> None:
    client = connect(wire.url, ttl=3, socket_timeout=0.4)
    locks = [client.RLock(f"{name}/{number}") for number in range(10)]
    for lock in locks:
        lock.acquire()
    wire.rule = lambda request: LOSE
    begun = time.monotonic()
    client.close()
    assert time.monotonic() - begun < 3
