"""The connection on which a client receives the messages of its grants."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import fencedlock
from fencedlock.backends.redis.inbox import _Stream
from fencedlock.clock import now_seconds
from fencedlock.runtime.bell import Bell
from tests.conftest import eventually
from tests.contenders import Contender, visit
from tests.proxy import HOLD, HOLD_AND_CUT, Proxy
from tests.servers import RedisServer


def test_a_thousand_waiters_on_a_thousand_locks_need_two_threads_and_two_connections(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    crowd = connect(server.url, ttl=30)
    holds = [client.RLock(f"{name}/{number}") for number in range(1000)]
    for hold in holds:
        hold.acquire()
    with server.client() as raw:
        strangers = {connection["id"] for connection in raw.client_list()}
        threads_before = threading.active_count()
        old_limit = threading.stack_size(256 * 1024)
        waiters = [
            threading.Thread(target=visit, args=(crowd.FairLock(hold.name),)) for hold in holds
        ]
        threading.stack_size(old_limit)
        for waiter in waiters:
            waiter.start()
        eventually(lambda: all(client.inspect(hold.name).waiters for hold in holds), 60)
        assert threading.active_count() - len(waiters) - threads_before <= 2
        eventually(
            lambda: len({connection["id"] for connection in raw.client_list()} - strangers) <= 2
        )
    for hold in holds:
        hold.release()
    for waiter in waiters:
        waiter.join(30)
        assert not waiter.is_alive()


FORKING = """
import os, sys, threading, time, fencedlock
lock = fencedlock.connect(sys.argv[1]).FairLock(sys.argv[2])
threading.Thread(target=lock.acquire, daemon=True).start()
sys.stdin.readline()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_forked_child_does_not_keep_its_dead_parents_inbox(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    with client.FairLock(name):
        command = [sys.executable, "-W", "ignore", "-c", FORKING, server.url, name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            (waiter,) = eventually(lambda: client.inspect(name).waiters)
            parent.stdin.write("fork\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            parent.kill()
        try:
            inbox = f"fencedlock:inbox:{waiter.owner.partition('/')[0]}"
            with server.client() as raw:
                eventually(lambda: raw.pubsub_numsub(inbox)[0][1] == 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_grant_at_the_moment_of_the_timeout_is_handed_on(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    proxy: Callable[[RedisServer], Proxy],
    contender: Callable[..., Contender],
    name: str,
) -> None:
    wire = proxy(server)
    late, next_one = contender("thread", connect(wire.url, ttl=10)), contender("thread", client)
    late.ask("make", name, "FairLock")
    next_one.ask("make", name, "FairLock")
    # The doorbell is held back, so it comes too late.
    wire.reply_rule = lambda reply: HOLD if b"message" in reply else None
    with client.FairLock(name):
        late.tell("acquire", name, timeout=1)
        eventually(lambda: len(client.inspect(name).waiters) == 1)
        next_one.tell("acquire", name)
        eventually(lambda: len(client.inspect(name).waiters) == 2)
    wire.wait_for(lambda: bool(wire.held_replies))
    assert late.answer() is False
    begun = time.monotonic()
    assert next_one.answer() is True
    assert time.monotonic() - begun < 3
    wire.deliver_replies()
    token = next_one.ask("token", name)
    assert client.inspect(name).token == int(token)
    assert next_one.ask("abandoned", name) is False
    next_one.ask("release", name)
    assert server.leftovers(name) == set()


@pytest.mark.parametrize("leaves", ["granted", "out of time", "cancelled"])
def test_who_reads_the_inbox_passes_it_on_when_it_leaves(
    leaves: str,
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    crowd, cancellation = connect(server.url, ttl=30), fencedlock.Cancellation()
    first, second = client.RLock(f"{name}/first"), client.RLock(f"{name}/second")
    first.acquire()
    second.acquire()
    ends: list[str] = []

    def read() -> None:
        try:
            lock = crowd.RLock(first.name)
            if lock.acquire(timeout=0.5 if leaves == "out of time" else 60, cancel=cancellation):
                lock.release()
                ends.append("granted")
            else:
                ends.append("out of time")
        except fencedlock.AcquireCancelledError:
            ends.append("cancelled")

    reader, sleepers = (
        threading.Thread(target=read),
        [threading.Thread(target=visit, args=(crowd.RLock(second.name),)) for _ in range(3)],
    )
    reader.start()
    eventually(lambda: client.inspect(first.name).waiters)
    for sleeper in sleepers:
        sleeper.start()
    eventually(lambda: len(client.inspect(second.name).waiters) == 3)
    if leaves == "granted":
        first.release()
    elif leaves == "cancelled":
        cancellation.cancel()
    reader.join(60)
    assert ends == [leaves]
    begun = time.monotonic()
    second.release()
    for sleeper in sleepers:
        sleeper.join(60)
    # A beat would tell them of the grant too, but only after more than three seconds.
    assert time.monotonic() - begun < 3
    if leaves != "granted":
        first.release()


def test_an_inbox_that_was_cut_while_nobody_slept_is_opened_for_the_next_who_does(
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    late = connect(server.url, ttl=30)
    late._table.listen(5)
    inbox = f"fencedlock:inbox:{late.id}"
    with server.client() as raw:
        eventually(lambda: raw.pubsub_numsub(inbox)[0][1] == 1)
        raw.client_kill_filter(_type="pubsub")
        with client.RLock(name):
            waiter = threading.Thread(target=visit, args=(late.RLock(name),))
            waiter.start()
            eventually(lambda: client.inspect(name).waiters and raw.pubsub_numsub(inbox)[0][1] == 1)
            begun = time.monotonic()
        waiter.join(60)
        assert time.monotonic() - begun < 3


SIGNALLED = """
import signal, sys, fencedlock
client = fencedlock.connect(sys.argv[1], ttl=30)
def handle(*_):
    with client.RLock(sys.argv[2] + "/inner"):
        print("inner", flush=True)
signal.signal(signal.SIGUSR1, handle)
with client.RLock(sys.argv[2] + "/outer"):
    print("outer", flush=True)
"""


def test_a_signal_handler_waits_while_its_thread_reads(
    server: RedisServer, client: fencedlock.Client, name: str
) -> None:
    outer, inner = client.RLock(f"{name}/outer"), client.RLock(f"{name}/inner")
    outer.acquire()
    inner.acquire()
    command = [sys.executable, "-W", "ignore", "-c", SIGNALLED, server.url, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        eventually(lambda: client.inspect(outer.name).waiters)
        process.send_signal(signal.SIGUSR1)
        eventually(lambda: client.inspect(inner.name).waiters)
        begun = time.monotonic()
        inner.release()
        assert process.stdout.readline() == "inner\n"
        outer.release()
        assert process.stdout.readline() == "outer\n"
        assert time.monotonic() - begun < 3


def test_beats_that_fall_due_about_the_same_time_share_an_exchange(
    proxy: Callable[[RedisServer], Proxy],
    server: RedisServer,
    connect: Callable[..., fencedlock.Client],
    name: str,
) -> None:
    wire = proxy(server)
    crowd = connect(wire.url, ttl=6)
    locks = [crowd.RLock(f"{name}/{number}") for number in range(20)]
    for lock in locks:
        assert lock.acquire()
        time.sleep(0.005)  # so that each falls due at another time
    before = _renewals(wire)
    eventually(lambda: all(lock.remaining() > 5 for lock in locks) and _renewals(wire) > before)
    assert _renewals(wire) - before <= 3
    for lock in locks:
        lock.release()


def _renewals(wire: Proxy) -> int:
    return len([request for request in wire.requests if Proxy.is_call(request, "renew")])


def test_a_hand_off_that_was_missed_during_a_cut_is_made_up_for_at_the_reconnection(
    proxy: Callable[[RedisServer], Proxy],
    server: RedisServer,
    client: fencedlock.Client,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    # The waiter's own beats are 20 s apart.
    monkeypatch.setattr("fencedlock.core.claims.MOST_SPAN_SECONDS", 60.0)
    wire = proxy(server)
    far = connect(wire.url, ttl=60)
    lock = client.FairLock(name)
    lock.acquire()
    waiter = threading.Thread(target=visit, args=(far.FairLock(name),))
    waiter.start()
    # Wait until the waiter has the answer that it waits. If the connection were cut before this
    # answer, the waiter would ask again and take the lock at once.
    eventually(lambda: any(claim.issued is not None for claim in list(far._table.claims.values())))
    wire.rule = lambda request: HOLD_AND_CUT if b"SUBSCRIBE" in request else None
    with server.client() as raw:
        wire.cut()
        eventually(lambda: raw.pubsub_numsub(f"fencedlock:inbox:{far.id}")[0][1] == 0)
        lock.release()  # nobody receives the message
        wire.wait_for(lambda: bool(wire.held))
    assert waiter.is_alive()
    begun = time.monotonic()
    wire.rule = lambda request: None
    waiter.join(20)
    assert time.monotonic() - begun < 5


class _Ears:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def doorbell(self, claim_id: str, token: int, abandoned: bool) -> None:
        self.heard.append((claim_id, token, abandoned))

    def look_again(self, claim_id: str) -> None:
        self.heard.append((claim_id,))

    def reconnected(self) -> None:
        raise AssertionError

    def maintain_by(self, at: float) -> None:
        raise AssertionError(at)


def _is_issued(token: int) -> bool:
    return token < 2**53


@pytest.mark.parametrize("seed", range(20))
def test_every_message_is_read_wherever_the_stream_is_cut_into_pieces(seed: int) -> None:
    rng, ears, stream = random.Random(seed), _Ears(), b""
    said: list[tuple[object, ...]] = []
    for number in range(30):
        claim, token = f"c/1/{number}", 10**15 + number
        kind = rng.choice(["granted", "abandoned", "look", "pong", "nonsense"])
        if kind == "pong":
            stream += b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
            continue
        words = {"look": "look", "nonsense": "and so on"}.get(
            kind, f"{token} {kind == 'abandoned':d}"
        )
        message = f"{claim} {words}"
        stream += f"*3\r\n$7\r\nmessage\r\n$5\r\ninbox\r\n${len(message)}\r\n{message}\r\n".encode()
        if kind != "nonsense":
            said.append((claim,) if kind == "look" else (claim, token, kind == "abandoned"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = _Stream(ours, ears, _is_issued)
        while stream:
            # With an even seed, a piece may also be exactly one message.
            size = rng.choice(
                [1, 7, 60, 300 if seed % 2 else stream.find(b"*", 1) % (len(stream) + 1)]
            )
            theirs.sendall(stream[:size])
            stream = stream[size:]
            reader.read_until(Bell(), now_seconds())
        reader.close()
    assert not reader.cut
    assert ears.heard == said


def test_a_message_whose_end_comes_with_the_next_one_is_read_before_it() -> None:
    ears = _Ears()
    first, second = (
        b"*3\r\n$7\r\nmessage\r\n$5\r\ninbox\r\n$9\r\nc/1/%d 7 0\r\n" % number for number in (1, 2)
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = _Stream(ours, ears, _is_issued)
        # The second piece alone has as many lines as one whole message.
        for piece in (first[:-1], first[-1:] + second):
            theirs.sendall(piece)
            reader.read_until(Bell(), now_seconds())
        reader.close()
    assert ears.heard == [("c/1/1", 7, False), ("c/1/2", 7, False)]
