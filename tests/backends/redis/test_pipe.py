"""The connection of an event loop: cuts, silence, long replies, many questions, TLS and users."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import fencedlock
from fencedlock.asyncio import FairLock, Lock, RLock
from fencedlock.asyncio.session import session_of
from fencedlock.clock import now_seconds
from fencedlock.core.claims import Claim
from fencedlock.runtime.owners import current_owner
from tests.asyncio.conftest import eventually, waiting
from tests.proxy import HOLD, HOLD_AND_CUT, LOSE, LOSE_REPLY, SPLIT, Proxy
from tests.servers import RedisServer

REQUEST_SECONDS = 0.25


@pytest.fixture
def wire(server: RedisServer, proxy: Callable[..., Any]) -> Proxy:
    made: Proxy = proxy(server)
    return made


@pytest.fixture
def remote(wire: Proxy, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    """A client behind the proxy, whose requests time out soon."""
    return connect(wire.url, ttl=3, socket_timeout=REQUEST_SECONDS)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def test_a_connection_that_was_cut_is_opened_anew(
    wire: Proxy, remote: fencedlock.Client, client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = FairLock(name, client=remote)
        for _ in range(3):
            async with lock as token:
                wire.cut()
                assert (await asyncio.to_thread(client.inspect, name)).token == int(token)
            wire.cut()
        assert not (await asyncio.to_thread(client.inspect, name)).locked

    run(main)


def test_a_waiter_whose_connections_are_cut_still_gets_the_lock(
    wire: Proxy, remote: fencedlock.Client, client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock, other = FairLock(name, client=remote), Lock(name, client=client)
        async with other:
            waiter = asyncio.create_task(_visit(lock))
            await waiting(other, 1)
            wire.cut()
        await asyncio.wait_for(waiter, 20)

    run(main)


def test_a_try_that_is_cut_is_sent_again_and_its_first_copy_comes_too_late(
    wire: Proxy, connect: Callable[..., fencedlock.Client], client: fencedlock.Client, name: str
) -> None:
    remote = connect(wire.url, ttl=10)
    copies = iter([HOLD_AND_CUT])

    async def main() -> None:
        lock = RLock(name, client=remote)
        await _visit(RLock("warm up", client=remote))
        wire.rule = lambda request: next(copies, None) if wire.is_call(request, "acquire") else None
        assert await lock.acquire(False)
        await lock.release()
        await asyncio.to_thread(wire.deliver)
        assert not await RLock(name, client=client).locked()

    run(main)


def test_a_doorbell_that_was_lost_is_made_up_for_after_the_reconnection(
    wire: Proxy,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The next beat that is due anyway would come minutes later."""
    monkeypatch.setattr("fencedlock.core.claims.MOST_SPAN_SECONDS", 600)
    monkeypatch.setattr("fencedlock.backends.redis.server.MOST_SPAN_SECONDS", 600)
    remote, other = connect(wire.url, ttl=600), connect(wire.url, ttl=600)

    async def main() -> None:
        holder = Lock(name, client=other)
        await holder.acquire()
        waiter = asyncio.create_task(_visit(FairLock(name, client=remote)))
        await waiting(holder, 1)
        lost: list[bytes] = []

        def lose_doorbells(reply: bytes) -> str | None:
            if b"message" not in reply:
                return None
            lost.append(reply)
            return LOSE

        wire.reply_rule = lose_doorbells
        await holder.release()
        await eventually(lambda: asyncio.sleep(0, lost))
        wire.reply_rule = lambda reply: None
        assert not waiter.done()
        wire.cut()
        await asyncio.wait_for(waiter, 60)

    run(main)


def test_an_inbox_that_has_become_silent_is_opened_anew(
    wire: Proxy,
    remote: fencedlock.Client,
    client: fencedlock.Client,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fencedlock.backends.redis.inbox.SILENCE_SECONDS", 0.2)

    def subscriptions() -> int:
        return sum(b"SUBSCRIBE" in request for request in wire.requests)

    async def main() -> None:
        other = Lock(name, client=client)
        async with other:
            waiter = asyncio.create_task(_visit(FairLock(name, client=remote)))
            await waiting(other, 1)
            before = subscriptions()
            wire.forget()
            await eventually(lambda: asyncio.sleep(0, subscriptions() > before))
        await asyncio.wait_for(waiter, 60)

    run(main)


def test_a_waiter_whose_loop_hears_nothing_asks_more_often(
    client: fencedlock.Client, name: str
) -> None:
    """Whatever the threads of its client hear."""
    backend: Any = client._table.backend

    def recheck_seconds(client_id: str) -> float:
        bound = backend.bind_lock(name)
        claim = Claim(f"{client_id}/1/1", bound, current_owner(), 10, fair=True, patient=True)
        now = now_seconds()
        answer = backend.read_claim_answer(claim, b"+waiting 5 30000\r\n", now)
        return float(answer.recheck_at - now)

    async def main() -> None:
        client._table.listen(30)
        session = session_of(client._table)
        assert recheck_seconds(session.client_id) < 1
        assert recheck_seconds(client.id) > 20
        await session.listen(30)
        assert recheck_seconds(session.client_id) > 20

    run(main)


def test_the_end_of_a_loop_waits_for_the_answer_to_a_release(
    wire: Proxy,
    client: fencedlock.Client,
    remote: fencedlock.Client,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def slow(_reply: bytes) -> None:
        time.sleep(0.02)

    async def main() -> None:
        lock = RLock(name, client=remote)
        await lock.acquire()
        wire.reply_rule = slow
        lock.release()

    run(main)
    assert not client.inspect(name).locked
    assert "had no answer" not in caplog.text


async def _visit(lock: Any) -> None:
    async with lock:
        pass


@pytest.mark.parametrize("fate", [LOSE, LOSE_REPLY])
@pytest.mark.parametrize("number", range(6))
def test_a_lost_packet_does_no_harm(
    fate: str,
    number: int,
    wire: Proxy,
    remote: fencedlock.Client,
    client: fencedlock.Client,
    server: RedisServer,
    name: str,
) -> None:
    """The life of a hold, in which each operation in turn is lost, or its reply is."""
    calls = iter(range(1_000_000))

    def rule(request: bytes) -> str | None:
        return fate if wire.is_operation(request) and next(calls) == number else None

    async def main() -> None:
        lock = RLock(name, client=remote)
        await _visit(RLock("warm up", client=remote))
        wire.rule = rule
        assert await lock.acquire()
        token = lock.token
        assert await lock.acquire()
        await lock.release()
        assert lock.token == token
        await lock.release()
        other = Lock(name, client=client)
        assert await other.acquire(timeout=20)
        assert other.token > token
        await other.release()

        async def is_tidy() -> bool:
            return server.leftovers(name) <= {":withdrawn"}

        await eventually(is_tidy)

    run(main)


def test_a_connection_that_has_become_silent_is_given_up(
    wire: Proxy, remote: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=remote)
        await _visit(lock)
        wire.forget()
        begun = time.monotonic()
        await _visit(lock)
        assert time.monotonic() - begun < 20

    run(main)


def test_a_late_acquire_is_not_executed(
    wire: Proxy, remote: fencedlock.Client, client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=remote)
        await _visit(RLock("warm up", client=remote))
        wire.rule = lambda request: HOLD if wire.is_call(request, "acquire") else None
        with pytest.raises(fencedlock.BackendUnavailableError):
            await lock.acquire(timeout=0.1)
        wire.rule = lambda request: None
        await asyncio.to_thread(wire.deliver)
        assert not await RLock(name, client=client).locked()

    run(main)


def test_replies_may_come_in_pieces(wire: Proxy, remote: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        locks = [RLock(f"{name}/{number}", client=remote) for number in range(50)]
        await _visit(locks[0])
        wire.reply_rule = lambda reply: SPLIT if len(reply) > 5 else None
        for lock in locks:
            visit = asyncio.create_task(_visit(lock))
            while not visit.done():
                wire.deliver_replies()
                await asyncio.sleep(0)
            await visit

    run(main)


def test_garbage_is_one_clear_error(wire: Proxy, remote: fencedlock.Client, name: str) -> None:
    async def main() -> None:
        lock = RLock(name, client=remote)
        await _visit(lock)
        wire.rule = lambda request: b"$5\r\nhello\r\n" if wire.is_operation(request) else None
        with pytest.raises(fencedlock.BackendError, match="makes no sense"):
            await lock.acquire()
        wire.rule = lambda request: None
        await _visit(lock)

    run(main)


def test_many_questions_at_once_find_room(
    connect: Callable[..., fencedlock.Client], own_server: Callable[..., Any]
) -> None:
    """While the server stands still, more is sent than the socket takes."""
    server = own_server()
    client = connect(server.url, ttl=30)

    async def main() -> None:
        await _visit(RLock("x", client=client))
        locks = [RLock(f"x/{number}/{'y' * 1000}", client=client) for number in range(3000)]
        server.freeze()
        tasks = [asyncio.create_task(lock.acquire()) for lock in locks]
        await asyncio.sleep(0)
        server.thaw()
        assert all(await asyncio.gather(*tasks))
        session: Any = client._table.sessions[asyncio.get_running_loop()]
        assert not session.calls._pipe.busy
        await client.aclose()

    run(main)


def test_scripts_are_loaded_again(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    async def main() -> None:
        lock = RLock(name, client=client)
        for _ in range(3):
            with server.client() as raw:
                raw.script_flush()
            assert await lock.acquire()
            assert await lock.acquire()
            with server.client() as raw:
                raw.script_flush()
            await lock.release()
            with server.client() as raw:
                raw.script_flush()
            lock.release()
        await eventually(lambda: _is_free(lock))

    run(main)


async def _is_free(lock: RLock) -> bool:
    return not (await lock.info()).locked


def test_a_server_that_is_away_comes_back(
    connect: Callable[..., fencedlock.Client], own_server: Callable[..., Any]
) -> None:
    server = own_server()
    client = connect(server.url, ttl=2, outage_timeout=30)

    async def main() -> None:
        lock = FairLock("x", client=client)
        await _visit(lock)
        server.kill()
        with pytest.raises(fencedlock.BackendUnavailableError, match="gave no answer"):
            await lock.acquire(timeout=0.3)
        visit = asyncio.create_task(_visit(lock))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(visit, 30)

    run(main)


def test_a_refused_user_is_one_clear_error(
    server: RedisServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(f"redis://nobody:secret@127.0.0.1:{server.port}/0")

    async def main() -> None:
        with pytest.raises(fencedlock.BackendMisconfiguredError, match="user or password") as told:
            await RLock("x", client=client).acquire()
        assert "secret" not in str(told.value)

    run(main)


@pytest.mark.parametrize("way", ["unix socket", "user and database", "ready client"])
def test_ways_to_connect(
    way: str, server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    if way == "unix socket":
        client = connect(f"unix://{server.socket}?db=3")
    elif way == "user and database":
        with server.client() as raw:
            raw.execute_command("ACL", "SETUSER", "locker", "on", ">pass", "~*", "&*", "+@all")
        client = connect(f"redis://locker:pass@127.0.0.1:{server.port}/3")
    else:
        client = connect(redis.Redis(port=server.port, db=3, decode_responses=True))

    async def main() -> None:
        async with Lock(name, client=client):
            waiter = asyncio.create_task(_visit(FairLock(name, client=client)))
            await waiting(Lock(name, client=client), 1)
            with server.client(db=3) as raw:
                assert raw.exists(f"fencedlock:{{{name}}}")
        await waiter

    run(main)


def test_tls(tls: tuple[RedisServer, int, Path], connect: Callable[..., Any]) -> None:
    _, port, authority = tls
    client = connect(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}", ttl=10)

    async def main() -> None:
        lock = Lock("x", client=client)
        async with lock:
            waiters = [asyncio.create_task(_visit(FairLock("x", client=client))) for _ in range(20)]
            await waiting(lock, 20)
        await asyncio.gather(*waiters)
        await asyncio.gather(
            *(_visit(RLock(f"x/{number}", client=client)) for number in range(500))
        )

    run(main)


def test_the_first_question_of_a_client_is_not_late(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    """Otherwise it would be asked again, and a task that asks after it would overtake it."""
    with client.FairLock(name):
        pass  # the scripts are loaded
    with server.client() as raw:
        fresh = connect(server.url)

        async def main() -> None:
            await _visit(FairLock(f"{name}/2", client=fresh))

        before = _calls(raw)
        run(main)
        assert _calls(raw) == before + 2


def _calls(raw: Any) -> int:
    """Return how many calls of scripts the server has had."""
    stats = raw.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
