"""The fast paths of the scripts keep the promises of the general ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fencedlock
from fencedlock import FencingToken
from fencedlock.clock import now_seconds
from tests.conftest import eventually, shared_server
from tests.contenders import Contender
from tests.proxy import LOSE_REPLY, Proxy
from tests.servers import REDIS_KINDS, LockServer, RedisServer


@pytest.fixture(params=REDIS_KINDS)
def server(
    request: pytest.FixtureRequest, _servers: dict[str, LockServer], short_folder: Path
) -> RedisServer:
    """A server of each kind, because the scripts have to run on every version."""
    return shared_server(_servers, short_folder, request.param)  # type: ignore[no-any-return]


def test_a_hold_begins_without_what_the_one_before_it_left(
    server: RedisServer, client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    """A hand-over writes the next grant over the last one, so nothing of that may be left."""
    next_one = contender("thread", client)
    next_one.ask("make", name, "FairLock")
    lock = client.FairLock(name)
    lock.acquire()
    for _ in range(5):  # the operations of the first hold go up to 10
        lock.acquire()
        lock.release()
    client.raise_floor(FencingToken(name, int(lock.token) + 5))
    next_one.tell("acquire", name)
    eventually(lambda: client.inspect(name).waiters)
    lock.release()
    assert next_one.answer() is True
    with server.client() as raw:
        assert not set(raw.hgetall(f"fencedlock:{{{name}}}")) & {"operation", "floor", "abandoned"}
    assert next_one.ask("acquire", name)
    assert client.inspect(name).count == 2
    next_one.ask("release", name)
    next_one.ask("release", name)


def test_a_try_that_passes_over_a_deaf_waiter_is_a_hold_like_others(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    """The server sees that nobody listens to the waiter's inbox.

    So the waiter is granted nothing, and no token is used up for it.
    """
    deaf = connect(server.url, ttl=30)
    lock = client.FairLock(name, ttl=0.5)
    with lock as before, server.client() as raw:
        place = f"{deaf.id}/1/1"
        seconds, _ = raw.time()
        raw.zadd(f"fencedlock:{{{name}}}:queue", {place: seconds * 1_000_000})
        raw.hset(f"fencedlock:{{{name}}}:waiters", place, f"{seconds * 1_000_000} 60000 0 somebody")
        fence = f"fencedlock:{{{name}}}:fence"
    assert lock.acquire(False)
    with server.client() as raw:
        issued, ended = raw.hmget(fence, "issued", "ended")
        assert int(lock.token) == int(issued) > int(ended) == int(before)
        # This has the same effect as the end of the lease.
        raw.delete(f"fencedlock:{{{name}}}", f"fencedlock:{{{name}}}:queue")
        other = connect(server.url).FairLock(name)
        assert other.acquire(False)
        assert other.abandoned
        assert other.token.value > int(issued)
        other.release()
    try:
        lock.release()
    except fencedlock.LockLostError:
        pass


def test_tokens_rise_above_what_this_client_has_seen_when_the_servers_clock_goes_back(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with lock:
        pass
    seen = int(lock._settings.latest.token) + 10**12  # type: ignore[union-attr]
    client._table.backend.saw(name, seen, now_seconds())
    with lock as token:
        assert seen < int(token) < seen + MOST_TEST_US


def test_the_lease_of_the_ordinary_grant_ends_here_before_it_ends_there(
    client: fencedlock.Client, name: str
) -> None:
    with client.RLock(name):
        pass
    lock = client.RLock(name, ttl=7.0004)  # the server counts whole milliseconds
    with lock:
        there = lock.info().remaining
        assert 0 < lock.remaining() < there + 0.001


def test_a_release_compares_the_token_too(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    lock, key = client.RLock(name), f"fencedlock:{{{name}}}"
    lock.acquire()
    with server.client() as raw:
        raw.hset(key, "token", str(int(lock.token) + 1))
        with pytest.raises(fencedlock.LockLostError):
            lock.release()
        assert raw.exists(key)


DAY_US = 86_400 * 1_000_000
MOST_TEST_US = 60 * 1_000_000
"""How far the floor of a lock may rise with the clock while a test runs."""


@pytest.fixture
def hand_over(
    contender: Callable[..., Contender], name: str
) -> Callable[[fencedlock.RLock, fencedlock.Client], int]:
    """A function that hands the lock over to a waiter of a client, and returns the new token."""

    def make(lock: fencedlock.RLock, client: fencedlock.Client) -> int:
        heir = contender("thread", client)
        heir.ask("make", name, "FairLock")
        heir.tell("acquire", name)
        eventually(lambda: client.inspect(name).waiters)
        lock.release()
        assert heir.answer() is True
        return int(heir.ask("token", name))

    return make


def test_tokens_rise_by_a_hand_over_when_the_servers_clock_goes_back(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    lock = client.FairLock(name)
    with lock as earlier:
        ahead = int(earlier) + DAY_US // 1000
    with server.client() as raw:
        raw.hset(f"fencedlock:{{{name}}}:fence", mapping={"issued": ahead, "ended": ahead})
    lock.acquire()
    assert int(lock.token) == ahead + 1
    # The successor's client has not seen these tokens.
    assert hand_over(lock, connect(server.url)) == ahead + 2


def test_tokens_rise_by_a_hand_over_above_what_the_next_one_has_seen(
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    server: RedisServer,
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    lock, heir = client.FairLock(name), connect(server.url)
    lock.acquire()
    seen = int(lock.token) + DAY_US // 1000
    with heir.RLock(f"{name}/other"):
        pass  # the client learns the server's time
    heir._table.backend.saw(name, seen, now_seconds())
    assert seen < hand_over(lock, heir) < seen + MOST_TEST_US


def test_a_name_is_remembered_for_the_clients_own_time(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    brief = connect(f"{server.url}?token_memory=3600")
    period_us, fence = math.ceil(3600 / 7 * 1e6), f"fencedlock:{{{name}}}:fence"
    lock = brief.FairLock(name)
    with server.client() as raw:

        def is_remembered() -> bool:
            return 3590 < int(raw.ttl(fence)) <= 3600 * 8 / 7 + 1

        with lock as token:
            assert is_remembered()
            raw.expire(fence, 600)
            lock.renew()
            assert is_remembered()
        earlier = int(token) - period_us
        for begin in (lock.acquire, lambda: hand_over(lock, brief)):
            raw.hset(fence, mapping={"issued": earlier, "ended": earlier})
            if lock._is_owned():
                lock._owned().token = earlier
                raw.hset(f"fencedlock:{{{name}}}", "token", earlier)
            raw.expire(fence, 600)
            begin()
            assert is_remembered()
        raw.delete(fence)
        brief.raise_floor(FencingToken(name, int(token) + DAY_US))
        assert is_remembered()
        with client.RLock(f"{name}/other"):
            assert raw.ttl(f"fencedlock:{{{name}/other}}:fence") > 7 * 86_400
        assert raw.memory_usage(fence) < 250


@pytest.mark.parametrize("lost", ["a day ago", "with the fence"])
def test_a_hand_over_lets_the_fence_live_for_another_week(
    lost: str,
    server: RedisServer,
    client: fencedlock.Client,
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    """The TTL of the fence is not set by each grant.

    It is set by the first grant of a day, and by a grant that creates the fence again.
    """
    lock, fence = client.FairLock(name), f"fencedlock:{{{name}}}:fence"
    with lock:
        pass
    lock.acquire()
    with server.client() as raw:
        if lost == "with the fence":
            raw.delete(fence)
        else:
            yesterday = lock._owned().token = int(lock.token) - DAY_US
            raw.hset(f"fencedlock:{{{name}}}", "token", yesterday)
            raw.expire(fence, 600)
        hand_over(lock, client)
        assert raw.ttl(fence) > 7 * 86_400


def test_a_hand_over_whose_answer_is_lost_is_a_release(
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[[RedisServer], Proxy],
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    wire = proxy(server)
    lock = connect(wire.url, ttl=30, socket_timeout=0.25).FairLock(name)
    lock.acquire()
    token = int(lock.token)
    calls = iter((LOSE_REPLY,))
    wire.rule = lambda request: next(calls, None) if wire.is_call(request, "release") else None
    assert hand_over(lock, connect(server.url, ttl=30)) > token  # without LockLostError
    assert sum(wire.is_call(request, "release") for request in wire.requests) == 2


class _Crowd:
    """Waiters of one lock that exist only on the server. Some of them listen to their inboxes."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self.raw = server.client()
        self.ears = self.raw.pubsub()
        self._key = f"fencedlock:{{{name}}}"

    def join(self, client_id: str, since_seconds: float, *, listens: bool) -> None:
        """Add a waiter that has been in the queue since this server time, with the longest span."""
        place = f"{client_id}/1/1"
        if listens:
            self.ears.subscribe(f"fencedlock:inbox:{client_id}")
            assert eventually(self.ears.get_message)["type"] == "subscribe"
        self.raw.zadd(f"{self._key}:queue", {place: int(since_seconds * 1e6)})
        self.raw.hset(f"{self._key}:waiters", place, f"{int(since_seconds * 1e6)} 10000 0 somebody")

    def now(self) -> float:
        seconds, microseconds = self.raw.time()
        return float(seconds + microseconds / 1e6)

    def close(self) -> None:
        self.ears.close()
        self.raw.close()


@pytest.fixture
def crowd(server: RedisServer, name: str) -> Iterator[_Crowd]:
    crowd = _Crowd(server, name)
    yield crowd
    crowd.close()


@pytest.mark.parametrize(
    ("head", "silent_seconds", "stays"), [("deaf", 1, True), ("lapsed", 11, False)]
)
def test_a_hand_over_passes_over_the_deaf_and_who_was_silent_for_its_span(
    head: str,
    silent_seconds: int,
    stays: bool,
    client: fencedlock.Client,
    crowd: _Crowd,
    hand_over: Callable[[fencedlock.RLock, fencedlock.Client], int],
    name: str,
) -> None:
    lock = client.FairLock(name)
    lock.acquire()
    crowd.join(head, crowd.now() - silent_seconds, listens=head == "lapsed")
    token = int(lock.token)
    assert hand_over(lock, client) > token
    assert crowd.ears.get_message() is None
    assert [waiter.owner for waiter in lock.info().waiters] == [f"{head}/1/1"] * stays


def test_a_hand_over_lasts_for_a_span_when_the_servers_clock_went_back(
    client: fencedlock.Client, crowd: _Crowd, name: str
) -> None:
    """The waiter took its place when the clock was still ahead."""
    lock = client.FairLock(name)
    lock.acquire()
    crowd.join("early", crowd.now() + 3600, listens=True)
    lock.release()
    assert eventually(crowd.ears.get_message)["type"] == "message"
    assert 9 < lock.info().remaining <= 10
