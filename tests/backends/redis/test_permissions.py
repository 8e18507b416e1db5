"""The documented permissions are enough for all that the library does, and for nothing else."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import fencedlock
from fencedlock import FencingToken
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import Proxy
from tests.servers import REDIS_KINDS, RedisServer

ROOT = Path(__file__).parents[3]


def documented() -> list[str]:
    """Return the rules of the user, as the documentation gives them."""
    text = (ROOT / "docs" / "operations.rst").read_text()
    rules = re.search(r"ACL SETUSER locker (.*?)\n\n", text, re.DOTALL)
    assert rules is not None
    return rules[1].split()


def make_user(server: RedisServer, *more: str) -> str:
    """Create the documented user, with ``more`` rules in addition, and return its URL."""
    with server.client() as raw:
        raw.execute_command("ACL", "SETUSER", "locker", "reset", *documented(), *more)
    return f"redis://locker:password@127.0.0.1:{server.port}/0"


def test_each_command_that_is_sent_is_among_them_and_no_other() -> None:
    folder = ROOT / "fencedlock" / "backends" / "redis"
    sent = {"evalsha", "eval"}
    for path in folder.rglob("*"):
        if path.suffix == ".lua":
            calls = re.findall(r"\bp?call\('([A-Z]+)'(?:, '(NUMSUB)')?", path.read_text())
        elif path.suffix == ".py":
            calls = re.findall(r"\bpack\(\"([A-Z]+)\"(?:, \"(NUMSUB|GET)\")?", path.read_text())
        else:
            continue
        sent.update("|".join(word.lower() for word in call if word) for call in calls)
    assert {rule[1:] for rule in documented() if rule.startswith("+")} == sent - {"config|get"}


@pytest.fixture(params=REDIS_KINDS)
def limited(request: pytest.FixtureRequest, own_server: Callable[..., Any]) -> RedisServer:
    server: RedisServer = own_server(request.param)
    return server


def test_they_are_enough(
    limited: RedisServer,
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client_url = make_user(limited)
    client = connect(client_url, ttl=10)
    other = connect(client_url, ttl=10)
    first, second = contender("thread", client), contender("thread", other)
    lock = client.FairLock("x")
    with caplog.at_level(logging.DEBUG, "fencedlock"):
        with lock as token:
            for waiter in (first, second):
                waiter.ask("make", "x", "FairLock")
                waiter.tell("acquire", "x")
                eventually(
                    lambda waiters=(waiter is first and 1) or 2: len(lock.info().waiters) == waiters  # type: ignore[misc]
                )
            with lock:
                assert [info.name for info in client.locks()] == ["x"]
                lock.renew(20)
            client.raise_floor(FencingToken("x", int(token) + 10**6))
            client._table.heartbeat.add(lock._owned(), 0.0)
            assert client.ping() > 0
            eventually(lambda: limited.hears(client.id, other.id))
            begun = time.monotonic()
        tokens = [token]
        for waiter in (first, second):
            assert waiter.answer() is True
            tokens.append(waiter.ask("token", "x"))
            waiter.ask("release", "x")
        assert time.monotonic() - begun < 2
        assert tokens == sorted(tokens)
        lock.acquire()
        assert lock.acquire(timeout=0.1)
        assert first.ask("acquire", "x", timeout=0.1) is False  # its claim is withdrawn
        assert client.force_release("x") is not None
        with pytest.raises(fencedlock.LockLostError):
            while True:
                lock.release()
                client._table.heartbeat.add(lock._owned(), 0.0)
        assert client._table.backend.check_settings(4) == []
        client.close()
    assert not re.search("(?i)permission|refuse|NOPERM", caplog.text)


FORBIDDEN = [
    "FLUSHALL",
    "FLUSHDB",
    "SWAPDB 0 1",
    "KEYS *",
    "CLIENT LIST",
    "CLIENT PAUSE 1",
    "CLIENT KILL TYPE pubsub",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "FUNCTION FLUSH",
    "CONFIG GET requirepass",
    "CONFIG SET maxmemory 1",
    "ACL LIST",
    "PUBSUB CHANNELS",
    "PSUBSCRIBE *",
    "SUBSCRIBE others",
    "PUBLISH others x",
    "GET others",
    "DEL others",
    "HSET others a b",
    "SHUTDOWN NOSAVE",
    "MONITOR",
    "REPLICAOF NO ONE",
    "SELECT 1",
    "RESTORE fencedlock:{x} 0 x",
]


def test_they_are_no_more_than_that(limited: RedisServer) -> None:
    make_user(limited)
    with (
        limited.client() as raw,
        redis.Redis(port=limited.port, username="locker", password="password") as user,
    ):
        raw.set("others", "are safe")
        for line in FORBIDDEN:
            command = line.split()
            with pytest.raises(redis.ResponseError):
                user.execute_command(*command)
            if command[0] in ("PSUBSCRIBE", "SUBSCRIBE", "MONITOR", "SHUTDOWN"):
                continue  # no script may call these anyway
            quoted = ", ".join(f"'{word}'" for word in command)
            with pytest.raises(redis.ResponseError):
                user.eval(f"return redis.call({quoted})", 0)
        assert raw.get("others") == b"are safe"


@pytest.mark.parametrize("missing", ["-subscribe", "-publish", "resetchannels", "-pubsub"])
def test_without_channels_locks_work_and_hand_offs_take_half_a_second(
    missing: str,
    own_server: Callable[..., Any],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    client = connect(make_user(own_server(), missing), ttl=10)
    waiter = contender("thread", client)
    lock = client.FairLock("x")
    lock.acquire()
    waiter.tell("acquire", "x")
    eventually(lambda: lock.info().waiters)
    begun = time.monotonic()
    lock.release()
    assert waiter.answer() is True
    # A waiter that listens waits for the doorbell. If none comes, it learns of the grant by a beat.
    assert time.monotonic() - begun < (4 if missing == "-publish" else 1.5)
    waiter.ask("release", "x")


def test_another_database_needs_to_be_selected(
    own_server: Callable[..., Any], connect: Callable[..., fencedlock.Client]
) -> None:
    server = own_server()
    with pytest.raises(fencedlock.BackendMisconfiguredError):
        connect(make_user(server).replace("/0", "/1")).RLock("x").acquire()
    with connect(make_user(server, "+select").replace("/0", "/1")).RLock("x"):
        pass


def test_an_error_that_is_answered_ends_no_connection(
    own_server: Callable[..., Any],
    proxy: Callable[[RedisServer], Proxy],
    connect: Callable[..., fencedlock.Client],
) -> None:
    """This user may not ask which clients listen, so the inbox can't be checked.

    That must not cost a connection for each call.
    """
    server = own_server()
    make_user(server, "-pubsub", "-scan", "+client|setname")
    wire = proxy(server)
    client = connect(f"redis://locker:password@127.0.0.1:{wire.port}/0?client_name=opened")
    client._table.listen(5)
    for number in range(10):
        with client.RLock("x"):
            pass
        with pytest.raises(fencedlock.BackendMisconfiguredError):
            list(client.locks())
        eventually(
            lambda number=number: (  # type: ignore[misc]
                number > 3
                or any(b"NUMSUB" in request and b"EVAL" not in request for request in wire.requests)
            )
        )
    assert sum(b"SETNAME" in request for request in wire.requests) <= 5
