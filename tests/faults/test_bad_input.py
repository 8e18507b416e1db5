"""Bad input of any kind raises one of our errors. It never causes a hang, or a hold that was not
granted.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fencedlock
from fencedlock import BackendError, ConfigurationError, FencedLockError
from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.keys import locks_prefix
from fencedlock.backends.etcd.messages import messages
from fencedlock.core.names import MOST_NAME_BYTES
from tests.conftest import eventually
from tests.etcd_servers import EtcdServer
from tests.proxy import hang_up
from tests.servers import LockServer, RedisServer

MOST_SECONDS = 15.0
"""The most time that anything here may take. It is generous because the machine is shared."""

_numbers = itertools.count()
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.lists(st.integers(), max_size=2),
)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


class TestArguments:
    @many
    @given(
        st.one_of(
            junk,
            st.builds(
                "{}://{}/{}".format,
                st.sampled_from(
                    [
                        "redis",
                        "rediss",
                        "unix",
                        "embedded",
                        "etcd",
                        "etcds",
                        "http",
                        "redis+cluster",
                        "",
                    ]
                ),
                st.text(max_size=30),
                st.text(max_size=20),
            ),
            st.text(alphabet="redistc:/@[]%?#=&,.0123456789 é\x00", max_size=40).map(
                lambda rest: f"redis://{rest}"
            ),
            st.text(alphabet="redistc:/@[]%?#=&,.0123456789 é\x00", max_size=40).map(
                lambda rest: f"etcd://{rest}"
            ),
        )
    )
    def test_a_target_is_taken_or_refused_before_any_io(self, target: Any) -> None:
        with contextlib.suppress(ConfigurationError):
            fencedlock.connect(target).close()

    @many
    @given(
        junk,
        st.sampled_from(["ttl", "namespace", "outage_timeout", "socket_timeout", "token_memory"]),
    )
    def test_a_setting_is_taken_or_refused_before_any_io(self, value: Any, setting: str) -> None:
        with contextlib.suppress(ConfigurationError):
            fencedlock.connect("redis://127.0.0.1:1", **{setting: value}).close()

    @settings(many, max_examples=200)
    @given(st.booleans(), junk)
    def test_acquire_takes_and_refuses_what_threading_does(
        self, blocking: Any, timeout: Any
    ) -> None:
        """Compare nested acquires of a held lock, so that nobody waits."""
        ours, theirs = self.held, threading.RLock()
        theirs.acquire()
        answers: list[Any] = []
        for lock in (theirs, ours):
            depth = lock._recursion_count() if hasattr(lock, "_recursion_count") else 1
            try:
                answers.append(lock.acquire(blocking, timeout))
            except Exception as error:
                answers.append(type(error))
                assert lock is theirs or ours._recursion_count() == depth
            else:
                lock.release()
        assert answers[0] == answers[1]

    @pytest.fixture(autouse=True)
    def _hold(self, client: fencedlock.Client, name: str) -> Iterator[None]:
        self.held = client.RLock(name)
        with self.held:
            yield
            assert self.held._recursion_count() == 1

    @many
    @given(junk)
    def test_a_floor_is_a_token_that_leaves_room(
        self, client: fencedlock.Client, value: Any
    ) -> None:
        for floor in (value, fencedlock.FencingToken(self.held.name, value)):
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**52:
                continue
            with pytest.raises((ConfigurationError, TypeError)):
                client.raise_floor(floor)


@settings(many, max_examples=40)
@given(
    name=st.one_of(
        st.text(max_size=30),
        st.text(alphabet="{}%/:\x00\n\x7f\udc80 *?[]\\é\U0001f512", max_size=12),
        st.integers(MOST_NAME_BYTES - 2, MOST_NAME_BYTES + 2).map(lambda size: "x" * size),
        st.just("🔒" * 2500),
        junk,
    )
)
def test_a_name_is_refused_before_any_io_or_works_as_it_is(
    backend: LockServer, connect: Callable[..., fencedlock.Client], name: Any
) -> None:
    client = _client(backend, connect)
    try:
        lock = client.FairLock(name)
    except ConfigurationError:
        assert (
            not isinstance(name, str)
            or not name
            or len(name.encode(errors="surrogatepass")) > MOST_NAME_BYTES
            or not _encodable(name)
        )
        return
    with lock as token:
        assert token.lock == client.inspect(name).name == name
        assert [info.name for info in client.locks(name) if info.name == name] == [name]
    assert not client.inspect(name).locked
    backend.wipe(name)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_clients: dict[str, fencedlock.Client] = {}


def _client(server: LockServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    """Return a client for all examples of a test."""
    client = _clients.get(server.url)
    if client is None or client.closed:
        client = _clients[server.url] = connect(server.url, ttl=5, socket_timeout=1)
    return client


# --- values that others have written to our keys


def redis_junk(rng: random.Random) -> list[tuple[str, ...]]:
    """Return commands that write a value of some type. Each is the name of the command, and the
    arguments that follow the key.
    """
    word = rng.choice(
        [
            "",
            "0",
            "-1",
            "x",
            "1e400",
            "nan",
            "9" * 30,
            "\x00\xff",
            "a b c d",
            "99999999999999999 1 0 h/1/1",
            "{}",
        ]
    )
    fields = [
        "owner",
        "token",
        "count",
        "operation",
        "abandoned",
        "issued",
        "ended",
        "floor",
        "holder",
        "c/1/1",
    ]
    return [
        ("SET", word),
        ("RPUSH", word, word),
        ("SADD", word),
        ("ZADD", str(rng.choice([-1, 0, 5e300, "inf"])), word),
        (
            "HSET",
            *itertools.chain.from_iterable(
                (field, word) for field in rng.sample(fields, rng.randint(1, 10))
            ),
        ),
        ("XADD", "*", "f", word),
    ]


def corrupt_redis(server: RedisServer, name: str, rng: random.Random) -> None:
    key = f"fencedlock:{{{name}}}"
    with server.client() as raw:
        for each in rng.sample(
            ["", ":queue", ":waiters", ":fence", ":withdrawn"], rng.randint(1, 3)
        ):
            command, *arguments = rng.choice(redis_junk(rng))
            raw.delete(key + each)
            raw.execute_command(command, key + each, *arguments)
            if rng.random() < 0.7:
                raw.pexpire(key + each, 60_000)


def corrupt_etcd(server: EtcdServer, name: str, rng: random.Random) -> None:
    own = locks_prefix("fencedlock", name) + b"/"
    connections, known = server.connections(), messages()
    for each in rng.sample(
        [b"holder", b"queue/x/1", b"queue/", b"grant", b"floor", b"withdrawn/x", b"other"],
        rng.randint(1, 3),
    ):
        value = rng.choice(
            [
                b"",
                b"0",
                b"-1",
                b"\xff\x00",
                b"x" * 5000,
                b"1 2 3",
                b"nan nan",
                b"9" * 40,
                b"0000000001 a/1/1 1 h",
            ]
        )
        connections.call(calls.PUT, known.PutRequest(key=own + each, value=value), 10)
    connections.close()


def corrupt(server: Any, name: str, rng: random.Random) -> None:
    (corrupt_redis if isinstance(server, RedisServer) else corrupt_etcd)(server, name, rng)


@settings(many, max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_corrupted_keys_raise_our_errors_and_hang_nobody(
    backend: LockServer, connect: Callable[..., fencedlock.Client], seed: int
) -> None:
    rng = random.Random(seed)
    client, name = _client(backend, connect), f"corrupted/{next(_numbers)}"
    lock = client.FairLock(name)
    orders: dict[str, Callable[[], object]] = {
        "try": lambda: lock.acquire(False),
        "wait": lambda: lock.acquire(timeout=0.05) if not lock._is_owned() else None,
        "renew": lock.renew,
        "release": lock.release,
        "inspect": lambda: client.inspect(name),
        "locks": lambda: list(client.locks(name)),
        "force": lambda: client.force_release(name),
    }
    with within(MOST_SECONDS):
        if rng.random() < 0.5:
            corrupt(backend, name, rng)
        for order in rng.choices([*orders, "corrupt"], k=8):
            try:
                if order == "corrupt":
                    corrupt(backend, name, rng)
                else:
                    orders[order]()
            except fencedlock.NotOwnedError:
                assert not lock._is_owned()
            except FencedLockError as error:
                assert str(error)
        while lock._is_owned():
            with contextlib.suppress(FencedLockError):
                lock.release()
        backend.wipe(name)
        eventually(lambda: not client.inspect(name).locked)
        assert lock.acquire(timeout=5), "it works again once the keys are right"
        lock.release()
        backend.wipe(name)


# --- answers of others in the server's place


class Impostor:
    """Listens in the place of a lock server, and gives any answers."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                self._answer(connection)

    def close(self) -> None:
        hang_up(self._listener)
        self._server.join()  # it may just have accepted one more connection
        for each in self._open:
            hang_up(each)


def drip(connection: socket.socket) -> None:
    """Send a byte now and then, but never the end of a line."""
    connection.sendall(b"+")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def flood(connection: socket.socket) -> None:
    """Send as much as possible, but never the end of a line."""
    while True:
        connection.sendall(b"x" * 65536)


ANSWERS: dict[str, bytes] = {
    "empty line": b"\r\n",
    "ok": b"+OK\r\n",
    "number": b":1\r\n",
    "null": b"$-1\r\n",
    "null array": b"*-1\r\n",
    "bulk": b"$3\r\nabc\r\n",
    "array": b"*2\r\n$1\r\na\r\n:1\r\n",
    "endless bulk": b"$2147483647\r\nabc",
    "endless array": b"*2147483647\r\n",
    "negative": b"$-7\r\n",
    "no number": b"$abc\r\n",
    "map of RESP3": b"%1\r\n+a\r\n+b\r\n",
    "push of RESP3": b">2\r\n+message\r\n+x\r\n",
    "error": b"-WAT is that\r\n",
    "granted without a token": b"+granted\r\n",
    "granted with text": b"+granted a b c d\r\n",
    "granted for ever": b"+granted 1 2 99999999999999999999999999 0\r\n",
    "waiting with text": b"+waiting x y\r\n",
    "two lines": b"+granted 1 2 3 0\r\n+granted 1 2 3 0\r\n",
    "late for ever": b"+late 99999999999999999\r\n",
    "binary": bytes(range(256)) + b"\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 3,
}


@pytest.fixture
def impostor() -> Iterator[Callable[[Callable[[socket.socket], None]], Impostor]]:
    made: list[Impostor] = []

    def make(answer: Callable[[socket.socket], None]) -> Impostor:
        made.append(Impostor(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("scheme", ["redis", "etcd"])
@pytest.mark.parametrize("answer", [*ANSWERS, "drip", "flood"])
def test_garbage_on_the_wire_is_told_in_time(
    scheme: str,
    answer: str,
    impostor: Callable[..., Impostor],
    connect: Callable[..., fencedlock.Client],
) -> None:
    says = {"drip": drip, "flood": flood}.get(
        answer, lambda connection: connection.sendall(ANSWERS[answer])
    )
    client = connect(
        f"{scheme}://127.0.0.1:{impostor(says).port}", socket_timeout=0.3, outage_timeout=0.5
    )
    lock = client.FairLock("x")
    orders: list[Callable[[], object]] = [
        lambda: lock.acquire(False),
        lambda: lock.acquire(timeout=0.4),
        lock.acquire,
        lambda: client.inspect("x"),
        lambda: client.force_release("x"),
        lambda: list(client.locks()),
    ]
    with within(MOST_SECONDS):
        for order in orders:
            with pytest.raises(BackendError):
                order()
            assert not lock._is_owned()
