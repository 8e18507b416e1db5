"""A Redis server that goes silent, or a network that does.

This may happen to an idle connection, to one that is being opened, and during a request.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fencedlock
from fencedlock.core.lease import LeaseState
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD_AND_CUT, LOSE, Proxy
from tests.servers import RedisServer

SOON_SECONDS = 1.5
"""A time that is enough for a leash and a reconnection on a busy machine, in seconds.

It is shorter than all time limits in this file.
"""


@pytest.fixture
def wire(server: RedisServer, proxy: Callable[[RedisServer], Proxy]) -> Proxy:
    return proxy(server)


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes connections count as idle for a long time at once."""
    monkeypatch.setattr("fencedlock.backends.redis.connections.RESTED_SECONDS", 0.0, raising=False)


CALLS_OF_A_FREE_LOCK: dict[str, Callable[[fencedlock.Client, fencedlock.RLock], object]] = {
    "acquire": lambda client, lock: lock.acquire(),
    "acquire in time": lambda client, lock: lock.acquire(timeout=3),
    "try": lambda client, lock: lock.acquire(False),
    "inspect": lambda client, lock: client.inspect(lock.name) is not None,
    "locks": lambda client, lock: list(client.locks(lock.name)) == [],
    "ping": lambda client, lock: client.ping() > 0,
    "force_release": lambda client, lock: client.force_release(lock.name) is None,
    "raise_floor": lambda client, lock: (
        client.raise_floor(fencedlock.FencingToken(lock.name, 7)) or True  # type: ignore[func-returns-value]
    ),
}


@pytest.mark.usefixtures("rested")
@pytest.mark.parametrize("call", CALLS_OF_A_FREE_LOCK)
def test_a_call_survives_that_its_idle_connection_was_forgotten(
    call: str, connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    client = connect(wire.url, ttl=30)
    lock = client.RLock(name)
    with lock:
        pass
    wire.forget()
    begun = time.monotonic()
    assert CALLS_OF_A_FREE_LOCK[call](client, lock)
    assert time.monotonic() - begun < SOON_SECONDS
    if lock._is_owned():
        lock.release()


@pytest.mark.usefixtures("rested")
def test_a_hold_survives_that_idle_connections_were_forgotten(
    connect: Callable[..., fencedlock.Client], client: fencedlock.Client, wire: Proxy, name: str
) -> None:
    lock = connect(wire.url, ttl=30).RLock(name)
    lock.acquire()
    steps: list[tuple[Callable[[], object], int]] = [
        (lock.acquire, 2),
        (lock.renew, 2),
        (lock.release, 1),
        (lock.release, 0),
    ]
    for step, count in steps:
        wire.forget()
        begun = time.monotonic()
        step()
        assert time.monotonic() - begun < SOON_SECONDS
        assert client.inspect(name).count == count
        if count:
            assert lock._owned().state is LeaseState.HELD, "one silent connection is no outage"


@pytest.mark.usefixtures("rested")
def test_a_beat_survives_that_its_idle_connection_was_forgotten(
    connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    remote = connect(wire.url, ttl=3)
    lock = remote.RLock(name)
    with lock:
        for _ in range(3):
            before = len(wire.requests)
            wire.forget()
            remote._table.heartbeat.add(lock._owned(), 0.0)
            wire.wait_for(
                lambda before=before: any(  # type: ignore[misc]
                    wire.is_call(request, "renew") for request in wire.requests[before:]
                ),
                2,
            )
            eventually(lambda: lock.remaining() > 2.5, 2)
            lock.ensure_held()


@pytest.mark.parametrize("fate", [LOSE, HOLD_AND_CUT])
def test_waiters_get_the_lock_where_nobody_can_subscribe(
    fate: str,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    wire: Proxy,
    contender: Callable[..., Contender],
    name: str,
) -> None:
    wire.rule = lambda request: fate if b"SUBSCRIBE" in request else None
    waiter, second = (contender("thread", connect(wire.url, ttl=30)) for _ in range(2))
    holder = client.FairLock(name)
    holder.acquire()
    waiter.tell("acquire", name, timeout=20)
    eventually(lambda: client.inspect(name).waiters)
    holder.release()
    begun = time.monotonic()
    assert waiter.answer() is True
    # A waiter asks every half second, and for the first time after a second at most.
    assert time.monotonic() - begun < 2.5
    begun = time.monotonic()
    assert second.ask("acquire", name, timeout=0.5) is False
    assert time.monotonic() - begun < 0.5 + SOON_SECONDS
    waiter.ask("release", name)


def test_one_half_open_connection_costs_no_other_lock_its_short_lease(
    connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    remote = connect(wire.url, ttl=30)
    patient, hasty = remote.RLock(f"{name}/patient"), remote.RLock(f"{name}/hasty", ttl=1.0)
    lost = 0

    def rule(request: bytes) -> str | None:
        nonlocal lost
        if wire.is_call(request, "renew") and wire.mentions(request, patient.name.encode()):
            lost += 1
            # All later requests on this connection are lost too, so the client gives it up.
            return LOSE
        return None

    with patient, hasty:
        wire.rule = rule
        for number in range(1, 6):
            remote._table.heartbeat.add(patient._owned(), 0.0)
            wire.wait_for(lambda number=number: lost >= number)  # type: ignore[misc]
            before = hasty._owned().deadline
            eventually(lambda before=before: hasty._owned().deadline > before)  # type: ignore[misc]
            hasty.ensure_held()
        patient.ensure_held()
        wire.rule = lambda request: None
        remote._table.heartbeat.add(patient._owned(), 0.0)
        eventually(lambda: patient.remaining() > 29)


class _Silences:
    """Ways in which a server may be silent. Each method returns the URL to use."""

    def __init__(self, wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wire = wire
        self.monkeypatch = monkeypatch
        self.ends = contextlib.ExitStack()

    def backlog(self) -> str:
        """The server does not accept connections."""
        listener = self.ends.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # the backlog is full, so the next SYN gets no answer
            filler = self.ends.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"

    def name_server(self) -> str:
        """The lookup of the host's name does not end."""
        answered = threading.Event()
        self.ends.callback(answered.set)
        lookup = socket.getaddrinfo

        def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
            if host == "locks.example":
                answered.wait(60)
                raise socket.gaierror("cut short")
            return lookup(host, *arguments, **options)

        self.monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return "redis://locks.example:6379/0"

    def login(self) -> str:
        self.wire.rule = lambda request: LOSE if b"AUTH" in request else None
        return f"redis://:password@127.0.0.1:{self.wire.port}/0"

    def questions(self) -> str:
        self.wire.rule = lambda request: (
            LOSE if b"EVAL" in request or b"SUBSCRIBE" in request else None
        )
        return self.wire.url

    def questions_after_a_slow_connection(self) -> str:
        """Connecting takes most of the caller's time limit."""

        def rule(request: bytes) -> str | None:
            if b"SETNAME" in request:
                time.sleep(1.0)
            return LOSE if b"EVAL" in request else None

        self.wire.rule = rule
        return f"{self.wire.url}?client_name=slow"

    def questions_after_the_script_was_unknown(self) -> str:
        """The question is asked again with the script's text, and gets no answer then."""

        def rule(request: bytes) -> str | bytes | None:
            if b"EVALSHA" in request:
                time.sleep(1.0)
                return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
            return LOSE if b"EVAL" in request else None

        self.wire.rule = rule
        return self.wire.url

    def answers_that_call_each_question_late(self) -> str:
        def rule(request: bytes) -> str | bytes | None:
            if not self.wire.is_call(request, "acquire"):
                return LOSE if b"EVAL" in request else None
            time.sleep(0.8)
            return b"+late 1000000000000\r\n"

        self.wire.rule = rule
        return self.wire.url

    def close(self) -> None:
        self.ends.close()


SILENCES = [name for name in vars(_Silences) if not name.startswith("_") and name != "close"]


@pytest.fixture
def silences(wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Silences]:
    silences = _Silences(wire, monkeypatch)
    yield silences
    silences.close()


@pytest.mark.parametrize("silent", SILENCES)
def test_no_call_outlasts_its_callers_limit(
    silent: str, silences: _Silences, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client = connect(getattr(silences, silent)(), ttl=30, socket_timeout=1.2)
    lock = client.FairLock(name)
    limits: list[tuple[Callable[[], object], float]] = [
        (lambda: lock.acquire(timeout=1.2), 1.2),
        (lambda: lock.acquire(timeout=0.1), 0.1),
        (lambda: lock.acquire(False), 1.2),
        (lambda: client.inspect(name), 1.2),
    ]
    for call, limit in limits:
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            call()
        # The withdrawal may take a quarter of a second, and the machine may be busy.
        assert time.monotonic() - begun < limit + 0.55
    begun = time.monotonic()
    client.close()
    assert time.monotonic() - begun < 6


@pytest.mark.parametrize("fate", [LOSE, HOLD_AND_CUT])
def test_a_new_connection_that_fails_costs_no_short_lease(
    fate: str, connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    """All open connections are cut, and the first new one fails while it is being opened.

    It gets no answer, or is closed. The next connection works.
    """
    lock = connect(f"{wire.url}?client_name=opened", ttl=1.5).RLock(name)
    with lock:
        for _ in range(3):
            failures = [fate]
            wire.rule = lambda request, failures=failures: (
                failures.pop() if failures and b"SETNAME" in request else None
            )  # type: ignore[misc]
            wire.cut()
            eventually(lambda failures=failures: not failures)  # type: ignore[misc]
            before = lock._owned().deadline
            eventually(lambda before=before: lock._owned().deadline > before)  # type: ignore[misc]
            lock.ensure_held()


@pytest.mark.parametrize("fate", [LOSE, HOLD_AND_CUT])
def test_a_new_connection_that_fails_does_not_cost_a_caller_its_time(
    fate: str, connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    failures = iter((fate, fate))
    wire.rule = lambda request: next(failures, None) if b"SETNAME" in request else None
    lock = connect(f"{wire.url}?client_name=opened", ttl=30).RLock(name)
    begun = time.monotonic()
    assert lock.acquire(timeout=3)
    assert time.monotonic() - begun < 2.5
    lock.release()


def test_a_server_that_was_reached_is_not_probed_for_its_protocol(
    connect: Callable[..., fencedlock.Client],
    wire: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """A probe would cost a second of the time of all threads that wait for a connection."""
    probes: list[object] = []
    monkeypatch.setattr(
        "fencedlock.backends.redis.connector.speaks_tls", lambda *where: probes.append(where)
    )
    lock = connect(f"{wire.url}?client_name=opened", ttl=30).RLock(name)
    with lock:
        pass
    failures = iter((HOLD_AND_CUT,) * 3)
    wire.rule = lambda request: next(failures, None) if b"SETNAME" in request else None
    wire.cut()
    with lock:
        pass
    assert next(failures, None) is None
    assert not probes


def test_subscribing_is_part_of_the_time_that_a_caller_has(
    client: fencedlock.Client, connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    """The server goes silent after its first answer, which says that the lock is held."""
    remote = connect(wire.url, ttl=30)
    with remote.RLock(name):
        pass
    busy = threading.Event()
    wire.reply_rule = lambda reply: busy.set() if b"busy" in reply else None
    wire.rule = lambda request: LOSE if busy.is_set() else None
    with client.RLock(name):
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            remote.RLock(name).acquire(timeout=2)
        assert time.monotonic() - begun < 2 + 0.75
