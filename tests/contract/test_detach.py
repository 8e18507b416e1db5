"""detach() ends a hold for its owner, and attach() goes on with it somewhere else."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar
from unittest import mock

import pytest

import fencedlock
from fencedlock import LockLostError, NotOwnedError
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD, HOLD_AND_CUT, LOSE_REPLY
from tests.servers import LockServer

CLASSES = pytest.mark.parametrize("cls", ["RLock", "FairLock", "Lock"])


@CLASSES
def test_the_other_goes_on_with_the_same_token(
    cls: str, client: fencedlock.Client, other: Contender, backend: LockServer, name: str
) -> None:
    lock = getattr(client, cls)(name)
    lock.acquire()
    token, owner = lock.token, client.inspect(name).owner
    secret = lock.detach()
    assert not lock.owned()
    with pytest.raises(NotOwnedError):
        lock.release()
    info = client.inspect(name)
    assert (info.locked, info.detached, info.owner, info.token, info.count) == (
        True,
        True,
        owner,
        int(token),
        1,
    )
    assert lock.acquire(timeout=0) is False
    other.ask("make", name, cls)
    assert other.ask("attach", name, secret) == token
    info = client.inspect(name)
    assert (info.locked, info.detached, info.token) == (True, False, int(token))
    assert info.owner != owner
    other.ask("renew", name, 20)
    assert 10 < client.inspect(name).remaining <= 20
    other.ask("ensure_held", name)
    assert lock.acquire(timeout=0) is False
    other.ask("release", name)
    assert lock.acquire(timeout=5)
    assert lock.token > token
    assert lock.abandoned is False
    lock.release()
    eventually(lambda: backend.leftovers(name) == set())


@CLASSES
def test_a_hold_that_another_has_detached_is_attached_here(
    cls: str, client: fencedlock.Client, other: Contender, backend: LockServer, name: str
) -> None:
    other.ask("make", name, cls)
    other.ask("acquire", name)
    token = other.ask("token", name)
    secret = other.ask("detach", name)
    with client.Lock(name).attaching(secret) as mine:
        assert mine == token
        with pytest.raises(NotOwnedError):
            other.ask("release", name)
    assert not client.inspect(name).locked
    eventually(lambda: backend.leftovers(name) == set())


@CLASSES
def test_a_secret_serves_once_and_only_for_its_lock(
    cls: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock, second = getattr(client, cls)(name), getattr(client, cls)(f"{name}/2")
    lock.acquire()
    second.acquire()
    secret, secret_of_second = lock.detach(), second.detach()
    for wrong in ("", "x", secret[:-1], secret_of_second, "\ud800", secret + " "):
        with pytest.raises(NotOwnedError, match="can be attached with this secret"):
            client.attach(wrong, name)
        with pytest.raises(NotOwnedError):
            lock.attach(wrong)
    with pytest.raises(TypeError, match="is a str"):
        client.attach(secret.encode(), name)
    assert client.inspect(name).detached
    other.ask("attach", name, secret)
    for client_or_lock in (lambda: client.attach(secret, name), lambda: lock.attach(secret)):
        with pytest.raises(NotOwnedError):
            client_or_lock()
    other.ask("release", name)
    with pytest.raises(NotOwnedError):
        client.attach(secret, name)
    client.attach(secret_of_second, f"{name}/2").release()


@CLASSES
def test_it_can_be_passed_on_again_and_back(
    cls: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = getattr(client, cls)(name)
    lock.acquire()
    token = lock.token
    lock.renew(20)  # an operation
    for _ in range(3):
        other.ask("attach", name, lock.detach())
        other.ask("renew", name)
        lock.attach(other.ask("detach", name))
        assert lock.token == token
        lock.renew()
        assert client.inspect(name).count == 1
    lock.release()
    assert not client.inspect(name).locked


def test_an_attached_rlock_can_be_nested(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    lock.acquire()
    lock.release()
    secret = lock.detach()
    other.ask("attach", name, secret)
    assert other.ask("acquire", name)
    assert client.inspect(name).count == 2
    other.ask("release", name)
    assert client.inspect(name).count == 1
    other.ask("release", name)
    assert not client.inspect(name).locked


@CLASSES
def test_if_nobody_attaches_it_the_lease_runs_out(
    cls: str, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    client = connect(backend.url, ttl=1)
    lock, after = getattr(client, cls)(name), client.FairLock(name)
    lock.acquire()
    begun = time.monotonic()
    secret = lock.detach(ttl=2)
    assert after.acquire(timeout=60)
    assert time.monotonic() - begun >= 2
    assert after.abandoned is True
    for attach in (lambda: client.attach(secret, name), lambda: lock.attach(secret)):
        with pytest.raises(NotOwnedError):
            attach()
    after.release()


def test_waiters_learn_that_it_lasts_for_less_than_they_know(
    connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    """One is told the time of the detached hold, and later one that of the attached hold."""
    client, got = connect(backend.url, ttl=60), []
    waiting = connect(backend.url, ttl=60)

    def wait() -> None:
        with waiting.FairLock(name):
            got.append(time.monotonic())

    for attaches in (False, True):
        lock = client.RLock(name)
        lock.acquire()
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: client.inspect(name).waiters)
        begun = time.monotonic()
        if attaches:
            secret = lock.detach(ttl=60)
            mine = client.Lock(name, ttl=1, max_hold=1)
            mine.attach(secret)  # and it is never renewed
        else:
            lock.detach(ttl=1)
        thread.join(100)
        assert got.pop() - begun < 20
        if attaches:
            # Otherwise its handle is collected before that is noticed.
            eventually(partial(getattr, mine, "lost"))


@CLASSES
def test_a_with_statement_whose_body_detaches_it_does_not_release_it(
    cls: str, client: fencedlock.Client, name: str
) -> None:
    lock = getattr(client, cls)(name)
    with lock as token:
        secret = lock.detach()
    assert client.inspect(name).detached
    with lock.attaching(secret) as same:
        assert same == token
        assert lock.depth == 1
        secret = lock.detach()
    with client.Lock(name).attaching(secret) as same, contextlib.suppress(ZeroDivisionError):
        assert same == token
        1 / 0  # noqa: B018
    assert not client.inspect(name).locked
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock)
        secret = lock.detach()
    with lock.attaching(secret):
        pass
    assert not client.inspect(name).locked
    with lock.within(5):
        secret = lock.detach()
    lock.attach(secret)
    lock.release()
    assert not client.inspect(name).locked


def test_statements_around_and_inside_of_an_attached_hold(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with lock:
        with lock.attaching(lock.detach()):
            with lock:
                assert lock.depth == 2
            assert lock.depth == 1
        assert not lock.owned()
    with lock:
        lock.attach(lock.detach())
    assert lock.depth == 1  # the hold of the statement was detached, so it has released nothing
    with lock:
        assert lock.depth == 2
    lock.release()
    assert not client.inspect(name).locked


@CLASSES
def test_a_statement_leaves_the_hold_alone_that_another_thread_has_attached_by_its_handle(
    cls: str, client: fencedlock.Client, name: str
) -> None:
    lock = getattr(client, cls)(name)
    attached, go_on = threading.Event(), threading.Event()
    owned: list[bool] = []

    def attach(secret: str) -> None:
        lock.attach(secret)
        attached.set()
        go_on.wait(60)
        owned.append(lock.owned())
        lock.release()

    with lock:
        thread = threading.Thread(target=attach, args=(lock.detach(),))
        thread.start()
        attached.wait(60)
    assert client.inspect(name).locked
    go_on.set()
    thread.join(60)
    assert owned == [True]


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Do all this in threads at the same time. Return the results and errors."""
    barrier, results = threading.Barrier(len(actions)), []

    def act(action: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results.append(action())
        except fencedlock.FencedLockError as error:
            results.append(error)

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_of_two_threads_only_one_attaches_it_and_only_one_detaches_it(
    client: fencedlock.Client, name: str
) -> None:
    lost: list[str] = []
    lock = client.Lock(name, on_lost=lambda lock, reason: lost.append(reason))
    lock.acquire()
    token, secret = lock.token, lock.detach()
    for _ in range(20):
        results = at_once(*2 * [partial(lock.attach, secret)])
        assert sorted(map(type, results), key=str) == [type(None), NotOwnedError]
        results = at_once(lock.detach, lock.detach)
        (secret,) = [result for result in results if isinstance(result, str)]
        assert {NotOwnedError} == {type(result) for result in results} - {str}
    lock.attach(secret)
    assert lock.token == token
    lock.release()
    assert not lost


def test_what_can_not_be_detached(client: fencedlock.Client, name: str) -> None:
    lock = client.RLock(name)
    for each in (lock, client.Lock(name)):
        with pytest.raises(NotOwnedError):
            each.detach()
    with lock:
        with lock, pytest.raises(fencedlock.ConfigurationError, match="held 2 times"):
            lock.detach()
        for ttl in (0, -1, float("nan"), True, "1", 1e12):
            with pytest.raises(fencedlock.ConfigurationError, match="ttl must be"):
                lock.detach(ttl=ttl)  # type: ignore[arg-type]
        with pytest.raises(NotOwnedError, match="holds lock"):
            lock.attach("x")
        lock.ensure_held()
        assert lock.depth == 1
        client.force_release(name)
        with pytest.raises(LockLostError):
            lock.detach()
        with pytest.raises(LockLostError):
            lock.attach("x")
        with pytest.raises(LockLostError):
            lock.release()
        lock.acquire()


def test_the_secret_is_not_shown(
    client: fencedlock.Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        lock = client.RLock(name)
        lock.acquire()
        secret = lock.detach()
        seen = [repr(lock), repr(client.inspect(name)), repr(client)]
        mine = client.attach(secret, name)
        seen += [repr(mine), repr(client.inspect(name))]
        with pytest.raises(NotOwnedError) as error:
            client.attach(secret, name)
        mine.release()
    seen += [repr(error.value), caplog.text]
    assert not any(secret in text for text in seen)


@CLASSES
def test_waiters_keep_their_order(
    cls: str, client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    lock, got = getattr(client, cls)(name), []
    waiting = connect(backend.url, ttl=10)
    lock.acquire()

    def wait(number: int) -> None:
        with waiting.FairLock(name):
            got.append(number)

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        eventually(lambda: len(client.inspect(name).waiters) == len(threads))
    mine = client.attach(lock.detach(), name)
    assert len(client.inspect(name).waiters) == 3
    mine.release()
    for thread in threads:
        thread.join(60)
    assert got == [0, 1, 2]


def test_a_detached_lock_outlives_its_client(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    mine = connect(backend.url, ttl=60)
    lock = mine.RLock(name)
    lock.acquire()
    token, secret = lock.token, lock.detach()
    mine.close()
    with client.Lock(name).attaching(secret) as same:
        assert same == token
    with pytest.raises(fencedlock.ConfigurationError):
        mine.attach(secret, name)
    with pytest.raises(fencedlock.ConfigurationError):
        lock.attach(secret)


def test_a_detached_lock_can_be_taken_by_force(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    token, secret = lock.token, lock.detach(ttl=600)
    assert connect(backend.url).force_release(name) == token
    with pytest.raises(NotOwnedError):
        client.attach(secret, name)
    with client.RLock(name) as later:
        assert later > token


def test_an_attached_hold_is_renewed_and_lost_like_any_other(
    connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    client = connect(backend.url, ttl=1)
    lock, lost = client.RLock(name), []
    lock.acquire()
    mine = client.attach(lock.detach(), name, on_lost=lambda lock, reason: lost.append(reason))
    asked_at = time.monotonic()
    while time.monotonic() < asked_at + 3:
        mine.ensure_held()
        time.sleep(0.05)
    client.force_release(name)
    eventually(lambda: lost)
    with pytest.raises(LockLostError):
        mine.release()


def test_an_attached_lock_whose_handle_is_gone_is_released(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    lock.acquire()
    with pytest.warns(ResourceWarning, match="was collected"):
        client.attach(lock.detach(), name)
    eventually(lambda: not client.inspect(name).locked)


class TestPackets:
    """Lost and late packets."""

    @pytest.fixture
    def wire(self, backend: LockServer, proxy: Callable[[LockServer], Any]) -> Any:
        return proxy(backend)

    @pytest.fixture
    def remote(self, wire: Any, connect: Callable[..., Any], name: str) -> fencedlock.Client:
        """A client behind the proxy, for which the server has loaded all scripts."""
        remote: fencedlock.Client = connect(wire.url, ttl=30, socket_timeout=1)
        lock = remote.RLock(f"{name}/warm")
        with lock:
            lock.renew()
            lock.attach(lock.detach())
        lock.release()
        return remote

    @staticmethod
    def lose(wire: Any, times: int) -> None:
        """Lose the replies to so many operations."""
        left = iter(range(times))

        def rule(request: Any) -> str | None:
            if wire.is_operation(request) and next(left, None) is not None:
                return LOSE_REPLY
            return None

        wire.rule = rule

    def test_a_reply_to_detach_is_lost(
        self, wire: Any, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> None:
        lock = remote.RLock(name)
        lock.acquire()
        token = lock.token
        self.lose(wire, 1)
        secret = lock.detach()
        with client.Lock(name).attaching(secret) as same:
            assert same == token

    def test_detach_has_no_answer(
        self, wire: Any, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> None:
        """Nobody knows the secret, so the lock is released as soon as possible."""
        lost: list[str] = []
        lock = remote.RLock(name, on_lost=lambda lock, reason: lost.append(reason))
        with lock:
            wire.rule = lambda request: LOSE_REPLY if wire.is_operation(request) else None
            with pytest.raises(fencedlock.BackendUnavailableError):
                lock.detach()
            assert not lock.owned()
            wire.rule = lambda request: None
        begun = time.monotonic()
        with client.RLock(name):
            assert time.monotonic() - begun < 20  # and not when its lease ends
        assert not lost

    def test_a_reply_to_attach_is_lost(
        self, wire: Any, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> None:
        lock = client.RLock(name)
        lock.acquire()
        token, secret = lock.token, lock.detach(ttl=60)
        self.lose(wire, 1)
        with remote.Lock(name).attaching(secret) as same:
            assert same == token
            with pytest.raises(NotOwnedError):
                client.attach(secret, name)
        assert not client.inspect(name).locked

    def test_a_beat_comes_after_it_was_detached(
        self, wire: Any, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> None:
        lost: list[str] = []
        lock = remote.RLock(name, on_lost=lambda lock, reason: lost.append(reason))
        lock.acquire()
        token = lock.token
        (hold,) = remote._table.resource(name).holds.values()
        hold.operation += 1  # so that the beat writes the depth
        wire.rule = lambda request: HOLD if wire.is_operation(request) else None
        beat = threading.Thread(target=remote._table.backend.renew, args=([hold], 5))
        beat.start()
        eventually(lambda: wire.held)
        wire.rule = lambda request: None
        secret = lock.detach(ttl=60)
        with client.Lock(name).attaching(secret) as same:
            wire.deliver()
            beat.join(60)
            info = client.inspect(name)
            assert same == token
            assert (info.detached, info.token) == (False, int(token))
            assert info.owner is not None
            assert info.owner.startswith(client.id)
        assert not client.inspect(name).locked
        assert not lost

    HASTY: ClassVar = {"ttl": 1, "socket_timeout": 0.5, "outage_timeout": 0.1}

    @staticmethod
    def attach_in_vain(
        wire: Any, fate: str, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> tuple[fencedlock.FencingToken, str]:
        """Inflict this fate on each attempt to attach a hold. Return its token and its secret."""
        lock = client.RLock(name)
        lock.acquire()
        lock.attach(lock.detach())  # the server has loaded the script
        token, secret = lock.token, lock.detach(ttl=60)
        wire.rule = lambda request: fate if is_about(wire, request, name) else None
        with pytest.raises(fencedlock.BackendUnavailableError):
            remote.attach(secret, name)
        return token, secret

    def test_nobody_asks_again_for_a_hold_that_was_perhaps_attached(
        self,
        wire: Any,
        connect: Callable[..., Any],
        client: fencedlock.Client,
        name: str,
    ) -> None:
        """It ends with its lease, although its client lives and keeps another lock."""
        remote = connect(wire.url, **self.HASTY)
        with remote.RLock(f"{name}/other") as other:
            self.attach_in_vain(wire, LOSE_REPLY, remote, client, name)
            assert not client.inspect(name).detached
            begun = time.monotonic()
            with client.RLock(name):
                assert time.monotonic() - begun < 30
            assert client.inspect(f"{name}/other").token == int(other)

    def test_a_late_packet_attaches_nothing(
        self,
        wire: Any,
        connect: Callable[..., Any],
        client: fencedlock.Client,
        name: str,
    ) -> None:
        """It comes after the time that the client had for it."""
        remote = connect(wire.url, **self.HASTY)
        with remote.RLock(f"{name}/other") as other:
            token, secret = self.attach_in_vain(wire, HOLD, remote, client, name)
            assert wire.held
            clock = client.FairLock(f"{name}/clock")
            clock.acquire()
            clock.detach(ttl=2)
            assert clock.acquire(timeout=60)  # by now, the packet's time is up
            clock.release()
            wire.deliver()
            assert client.inspect(name).detached
            with client.Lock(name).attaching(secret) as same:
                assert same == token
            assert client.inspect(f"{name}/other").token == int(other)

    def test_a_late_question_of_the_hold_that_was_detached_takes_nothing(
        self, wire: Any, remote: fencedlock.Client, client: fencedlock.Client, name: str
    ) -> None:
        lock = remote.FairLock(name)
        wire.rule = lambda request: (
            HOLD_AND_CUT if not wire.held and wire.is_call(request, "acquire") else None
        )
        lock.acquire()
        assert wire.held
        client.attach(lock.detach(), name).release()
        wire.deliver()
        info = client.inspect(name)
        assert not info.locked
        assert not info.waiters


def is_about(wire: Any, request: Any, name: str) -> bool:
    """Return True if the request is an operation of this lock."""
    return bool(wire.is_operation(request)) and (
        wire.mentions(request, f"{name.replace('/', '%2F')}/holder".encode())  # etcd
        or wire.mentions(request, f"{{{name}}}".encode())
    )


def test_the_server_is_away_for_a_moment(
    new_server: Callable[[], Any], connect: Callable[..., Any], name: str
) -> None:
    server = new_server()
    client, other = (connect(server.url, ttl=30, socket_timeout=0.2) for _ in range(2))
    lock = client.RLock(name)
    lock.acquire()
    token, secret = lock.token, lock.detach(ttl=60)
    server.freeze()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(other.attach(secret, name)))
    thread.start()
    eventually(lambda: other._table.outage.since is not None)
    server.thaw()
    thread.join(60)
    assert got[0].token == token
    got[0].release()
    assert not client.inspect(name).locked


def test_the_server_stays_away(
    new_server: Callable[[], Any], connect: Callable[..., Any], name: str
) -> None:
    server = new_server()
    client = connect(server.url, ttl=30, socket_timeout=0.2)
    lock = client.RLock(name)
    lock.acquire()
    secret = lock.detach(ttl=60)
    other = connect(server.url, ttl=30, socket_timeout=0.2, outage_timeout=0.5)
    server.freeze()
    for _ in range(2):
        with pytest.raises(fencedlock.BackendUnavailableError):
            other.attach(secret, name)
    server.thaw()
    other.attach(secret, name).release()
    assert not client.inspect(name).locked


def test_a_client_that_is_closed_while_it_attaches_leaves_it_detached(
    client: fencedlock.Client, connect: Callable[..., Any], backend: LockServer, name: str
) -> None:
    lock, other = client.RLock(name), connect(backend.url, ttl=30)
    lock.acquire()
    token, secret = lock.token, lock.detach(ttl=60)
    mine = other.Lock(name)
    attach = type(mine._settings.resource.bound).attach

    def close_and_attach(*arguments: Any) -> Any:
        answer = attach(*arguments)
        other._table.closed = True
        return answer

    with (
        mock.patch.object(type(mine._settings.resource.bound), "attach", close_and_attach),
        pytest.raises(fencedlock.AcquireCancelledError),
    ):
        mine.attach(secret)
    with client.Lock(name).attaching(secret) as same:
        assert same == token
    other._table.closed = False
