"""Forged messages on the inbox.

Their author may publish messages and listen to them, but has no right to any key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis

import fencedlock
from fencedlock import FencingToken
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import HOLD, LOSE, Proxy
from tests.servers import RedisServer


class _Forger:
    """Listens to all channels, and publishes any message."""

    def __init__(self, server: RedisServer) -> None:
        with server.client() as raw:
            raw.execute_command(
                "ACL",
                "SETUSER",
                "forger",
                "reset",
                "on",
                ">x",
                "allchannels",
                "+publish",
                "+psubscribe",
                "+pubsub",
                "+ping",
            )
        self._raw = redis.Redis(
            port=server.port, username="forger", password="x", decode_responses=True
        )
        self._ears = self._raw.pubsub(ignore_subscribe_messages=True)
        self._ears.psubscribe("*")
        eventually(lambda: self._ears.subscribed)
        self._ears.get_message(timeout=5)
        self.heard: list[str] = []

    def say(self, client: fencedlock.Client, *messages: str) -> None:
        for message in messages:
            assert self._raw.publish(f"fencedlock:inbox:{client.id}", message) >= 1

    def listen(self) -> list[str]:
        while (message := self._ears.get_message()) is not None:
            self.heard.append(message["data"])
        return self.heard

    def close(self) -> None:
        self._ears.close()
        self._raw.close()


@pytest.fixture
def forger(own_server: Callable[..., RedisServer]) -> Iterator[tuple[RedisServer, _Forger]]:
    server = own_server()
    forger = _Forger(server)
    yield server, forger
    forger.close()


TOKENS = [
    "9" * 15,
    str(2**53),
    str(2**62),
    "9" * 16,
    "9" * 17,
    "9" * 400,
    "0",
    "-1",
    "1e15",
    "²",
    "٣",
    "",
]


@pytest.mark.parametrize("cls", ["FairLock", "RLock"])
def test_whoever_guesses_lets_nobody_in_and_raises_no_token(
    cls: str,
    forger: tuple[RedisServer, _Forger],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    server, evil = forger
    holding, waiting = connect(server.url, ttl=10), connect(server.url, ttl=10)
    waiter = contender("thread", waiting)
    waiter.ask("make", "job", cls)
    lock = holding.FairLock("job")
    lock.acquire()
    waiter.tell("acquire", "job", timeout=60)
    eventually(lambda: lock.info().waiters and server.hears(waiting.id))
    now = int(lock.token) + 10**6
    (place,) = lock.info().waiters
    owner = place.owner.rpartition("/")[0]
    for token in (str(now), *TOKENS):
        for number in range(1, 20):
            evil.say(
                waiting,
                f"{waiting.id}/{number}/{number} {token} 0",
                f"{owner}/{number:x} {token} 1",
                f"{owner} {token} 0",
            )
        evil.say(
            waiting,
            f"{waiting.id} {token} 0",
            f"/ {token} 0",
            f" {token} 0",
            f"{owner}/ {token} 0",
            token,
            f"a {token} 0 0",
        )
    evil.say(
        waiting,
        "",
        " ",
        "\r\n",
        "\x00",
        f"{owner} look",
        f"{waiting.id} look",
        " look",
        "look",
        f"{owner} look look",
        "x" * 10**6,
    )
    for _ in range(20):
        assert not waiter.answered(0.02), "a forged doorbell let somebody in"
        lock.ensure_held()
    assert lock.info().token == int(lock.token)
    before = lock.token
    begun = time.monotonic()
    lock.release()
    assert waiter.answer() is True
    assert time.monotonic() - begun < 2, "true doorbells are not heard any more"
    token = waiter.ask("token", "job")
    assert before < token < FencingToken("job", int(before) + 60 * 10**6)
    waiter.ask("release", "job")
    with lock as later:
        assert token < later < FencingToken("job", int(before) + 60 * 10**6)


def test_who_hears_what_is_published_learns_no_claim_that_waits(
    forger: tuple[RedisServer, _Forger],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    """After a hand-off to a waiter with a short span, a message makes the next waiter ask again.

    That message must not name the next waiter's claim.
    """
    server, evil = forger
    holding = connect(server.url, ttl=10)
    others = [connect(server.url, ttl=ttl) for ttl in (1, 30)]
    hasty, patient = (contender("thread", other) for other in others)
    lock = holding.FairLock("job")
    lock.acquire()
    for number, waiter in enumerate((hasty, patient), 1):
        waiter.ask("make", "job", "FairLock")
        waiter.tell("acquire", "job", timeout=60)
        eventually(lambda number=number: len(lock.info().waiters) == number)  # type: ignore[misc]
    eventually(lambda: server.hears(*(other.id for other in others)))
    _, place = lock.info().waiters
    lock.release()
    assert hasty.answer() is True
    eventually(lambda: len(evil.listen()) == 2)
    assert not any(place.owner in message for message in evil.listen())
    assert f"{place.owner.rpartition('/')[0]} look" in evil.listen()
    hasty.ask("release", "job")
    assert patient.answer() is True
    patient.ask("release", "job")


def test_a_claim_that_was_named_by_a_doorbell_is_not_used_to_wait_again(
    forger: tuple[RedisServer, _Forger],
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[[RedisServer], Proxy],
    contender: Callable[..., Contender],
) -> None:
    """The doorbell of a waiter comes too late, so the waiter asks again.

    Somebody who has read that message must not be able to let it in by another message.
    """
    server, evil = forger
    wire = proxy(server)
    holding, waiting = connect(server.url, ttl=10), connect(wire.url, ttl=10, socket_timeout=0.25)
    waiter = contender("thread", waiting)
    waiter.ask("make", "job", "FairLock", ttl=0.5)
    with holding.FairLock("job"):
        waiter.tell("acquire", "job", timeout=60)
        eventually(lambda: holding.inspect("job").waiters)
        wire.reply_rule = lambda reply: HOLD if b"message" in reply and b"/" in reply else None
        wire.rule = lambda request: LOSE
    wire.wait_for(lambda: bool(wire.held_replies))  # granted, but the waiter can't learn of it
    (message,) = eventually(evil.listen)
    eventually(lambda: not holding.inspect("job").locked)  # the grant has lapsed
    lock = holding.FairLock("job")
    with lock as token:
        wire.rule = lambda request: None
        wire.reply_rule = lambda reply: None
        eventually(lambda: holding.inspect("job").waiters)
        for _ in range(20):
            evil.say(waiting, f"{message.split()[0]} {int(token) + 1} 0")
            assert not waiter.answered(0.02), (
                "a doorbell that was forged after a true one let a second holder in"
            )
            lock.ensure_held()
    assert waiter.answer() is True
    waiter.ask("release", "job")
