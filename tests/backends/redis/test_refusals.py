"""The errors of a server that does not serve.

The library waits for the end of a state that passes. A state that stays is one clear error at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import redis

import fencedlock
from fencedlock.backends.redis.refusals import Meaning, meaning_of
from tests.conftest import eventually
from tests.contenders import Contender
from tests.proxy import Proxy
from tests.servers import REDIS_KINDS, RedisServer, free_port

PASSES = {
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "BUSY": (
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
    ),
    "MASTERDOWN": (
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
    ),
    "CLUSTERDOWN": "CLUSTERDOWN Hash slot not served",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "MISCONF": (
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist "
        "to disk."
    ),
    "READONLY": "READONLY You can't write against a read only replica.",
    "maxclients": "ERR max number of clients reached",
}
STAYS = {
    "MOVED": "MOVED 7798 127.0.0.1:42721",
    "ASK": "ASK 7798 127.0.0.1:42721",
    "CROSSSLOT": "CROSSSLOT Keys in request don't hash to the same slot",
    "NOAUTH": "NOAUTH Authentication required.",
    "WRONGPASS": "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM": "NOPERM User locker has no permissions to run the 'evalsha' command",
    "NOPERM of keys": "NOPERM No permissions to access a key",
    "in a script": (
        "ERR ACL failure in script: User locker has no permissions to run the 'hset' command"
    ),
    "in a script of 6.2": (
        "ERR Error running script (call to f_1): The user executing the script can't run this "
        "command or subcommand"
    ),
    "DENIED": (
        "DENIED Redis is running in protected mode because protected mode is enabled and no "
        "password is set for the default user."
    ),
}
REFUSED = {
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "WRONGTYPE": "WRONGTYPE Operation against a key holding the wrong kind of value",
    "unknown": "ERR unknown command 'EVALSHA', with args beginning with:",
}


def _in_script(words: str) -> list[str]:
    """Return the words of an error as servers send them.

    These are the words for a plain command, then for a command in a script before version 7.0, and
    since then.
    """
    if words.startswith(
        (
            "ERR ",
            "MOVED",
            "ASK",
            "CROSSSLOT",
            "NOAUTH",
            "WRONGPASS",
            "DENIED",
            "LOADING",
            "BUSY",
            "CLUSTERDOWN",
            "TRYAGAIN",
        )
    ):
        return [words]  # commands in scripts do not get this error
    return [
        words,
        (
            "ERR Error running script (call to f_1b936e3fe509bcbc9cd0664897bbe8fd0cac101b): "
            f"@user_script:12: @user_script: 12: -{words}"
        ),
        f"{words} script: 1b936e3fe509bcbc9cd0664897bbe8fd0cac101b, on @user_script:12.",
    ]


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        *(
            (words, Meaning.MOVED_AWAY if code == "READONLY" else Meaning.PASSES)
            for code, said in PASSES.items()
            for words in _in_script(said)
        ),
        *((words, Meaning.MISCONFIGURED) for said in STAYS.values() for words in _in_script(said)),
        *((words, Meaning.REFUSED) for said in REFUSED.values() for words in _in_script(said)),
        ("NOSCRIPT No matching script. Please use EVAL.", Meaning.NO_SCRIPT),
    ],
)
def test_each_has_its_meaning_as_either_package_reads_it(
    package: str, words: str, meaning: Meaning
) -> None:
    parser = import_module(f"{package}._parsers.base").BaseParser
    assert meaning_of(parser.parse_error(words))[0] is meaning


def test_a_lock_that_is_named_as_an_error_changes_no_meaning() -> None:
    words = (
        "ERR unknown command 'EVALSHA', with args beginning with: "
        "'f' '5' 'fencedlock:{READONLY }' 'fencedlock:{x -MOVED 1}'"
    )
    assert meaning_of(redis.ResponseError(words))[0] is Meaning.REFUSED


@pytest.fixture
def wire(server: RedisServer, proxy: Callable[[RedisServer], Proxy]) -> Proxy:
    return proxy(server)


class _Says:
    """Answers a number of calls of our scripts with an error, then lets the server answer."""

    def __init__(self, wire: Proxy, words: str, times: int) -> None:
        self.left = times
        self._wire = wire
        self._answer = f"-{words}\r\n".encode()
        wire.rule = self._rule

    def _rule(self, request: bytes) -> bytes | None:
        if self.left and self._wire.is_operation(request):
            self.left -= 1
            return self._answer
        return None


@pytest.mark.parametrize("words", PASSES.values(), ids=list(PASSES))
def test_what_passes_is_waited_out(
    words: str,
    connect: Callable[..., fencedlock.Client],
    client: fencedlock.Client,
    wire: Proxy,
    name: str,
) -> None:
    lock = connect(wire.url, ttl=3).RLock(name)
    for acquire in (lambda: lock.acquire(timeout=10), lock.acquire):
        saying = _Says(wire, words, 3)
        assert acquire()
        assert not saying.left
        assert client.inspect(name).token == int(lock.token)
        saying = _Says(wire, words, 3)
        assert lock.acquire()
        eventually(lambda: client.inspect(name).count == 2)  # a beat tells the server
        assert not saying.left
        saying = _Says(wire, words, 4)
        lock.renew()
        assert not saying.left
        _Says(wire, words, 3)
        lock.release()
        eventually(lambda: client.inspect(name).count == 1)
        saying = _Says(wire, words, 3)
        lock._client._table.heartbeat.add(lock._owned(), 0.0)
        eventually(lambda saying=saying: not saying.left and lock.remaining() > 2.5)  # type: ignore[misc]
        _Says(wire, words, 1)
        lock.release()
        eventually(lambda: not client.inspect(name).locked)
        with pytest.raises(RuntimeError):
            lock.release()
    _Says(wire, words, 1000)
    for call in (lambda: lock.acquire(False), lambda: lock.acquire(timeout=0.3)):
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError, match=r"can't serve now|in time"):
            call()
        assert time.monotonic() - begun < 1.5
    wire.rule = lambda request: None


@pytest.mark.parametrize("words", [*STAYS.values(), *REFUSED.values()], ids=[*STAYS, *REFUSED])
def test_what_stays_is_one_error_at_once(
    words: str, connect: Callable[..., fencedlock.Client], wire: Proxy, name: str
) -> None:
    lock = connect(wire.url, ttl=10).RLock(name)
    with lock:
        pass
    _Says(wire, words, 1000)
    kind = (
        fencedlock.BackendMisconfiguredError if words in STAYS.values() else fencedlock.BackendError
    )
    for call in (lambda: lock.acquire(timeout=10), lock.acquire, lambda: lock.acquire(False)):
        begun = time.monotonic()
        with pytest.raises(kind) as caught:
            call()
        assert not isinstance(caught.value, fencedlock.BackendUnavailableError)
        assert name in str(caught.value)
        assert time.monotonic() - begun < 1.5
        assert not lock._is_owned()
    wire.rule = lambda request: None
    with lock:
        assert lock.info().count == 1


class _Situations:
    """Ways to bring a real server into a state in which it does not serve, and out of it again."""

    def __init__(self, kind: str, own_server: Callable[..., Any]) -> None:
        self._kind = kind
        self._own_server = own_server
        self.ends = contextlib.ExitStack()

    def _server(self, **settings: str) -> tuple[RedisServer, redis.Redis]:
        server = self._own_server(self._kind, **settings)
        return server, self.ends.enter_context(server.client())

    def read_only(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server()
        raw.replicaof("127.0.0.1", str(free_port()))
        return server, lambda: raw.replicaof("NO", "ONE")

    def master_down(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server(replica_serve_stale_data="no")
        raw.replicaof("127.0.0.1", str(free_port()))
        return server, lambda: raw.replicaof("NO", "ONE")

    def too_few_replicas(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server(min_replicas_to_write="1")
        return server, lambda: raw.config_set("min-replicas-to-write", 0)

    def no_disk(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server()
        raw.config_set("save", "3600 1")
        (server.folder / "dump.rdb").mkdir()  # so that the server can't save its file there
        raw.bgsave()
        eventually(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err")
        return server, lambda: raw.config_set("stop-writes-on-bgsave-error", "no")

    def too_many_clients(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server()
        raw.ping()
        eventually(lambda: len(raw.client_list()) == 1)
        raw.config_set("maxclients", 1)
        return server, lambda: raw.config_set("maxclients", 1000)

    def cluster_down(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server(cluster_enabled="yes")
        return server, lambda: raw.execute_command("CLUSTER", "ADDSLOTS", *range(16384))

    def busy(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server(lua_time_limit="10")
        other = self.ends.enter_context(server.client(socket_timeout=60))
        thread = threading.Thread(target=_swallow, args=(other.eval, "while true do end", 0))
        thread.start()
        self.ends.callback(thread.join)

        def kill() -> None:
            eventually(lambda: _swallow(raw.script_kill) is True)

        return server, kill

    def loading(self) -> tuple[RedisServer, Callable[[], object]]:
        server, raw = self._server()
        raw.mset({f"key {number}": os.urandom(50_000) for number in range(250)})
        raw.save()
        server.kill()
        server.settings["key-load-delay"] = "4000"  # in microseconds
        start = threading.Thread(target=server.start)
        start.start()
        return server, start.join


def _swallow(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except redis.RedisError:
        return None


SITUATIONS = [name for name in vars(_Situations) if not name.startswith("_")]


@pytest.mark.parametrize("kind", REDIS_KINDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_real_server_that_does_not_serve_for_a_while_is_waited_for(
    situation: str,
    kind: str,
    own_server: Callable[..., Any],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    situations = _Situations(kind, own_server)
    with situations.ends:
        server, end = getattr(situations, situation)()
        client = connect(server.url, ttl=10, outage_timeout=20)
        waiter = contender("thread", client)
        waiter.tell("acquire", "x")
        eventually(lambda: client._table.outage.since is not None)
        assert not waiter.answered()
        end()
        assert waiter.answer() is True
        assert client.inspect("x").locked
        waiter.ask("release", "x")


def test_a_node_of_a_cluster_says_what_it_is(
    own_server: Callable[..., Any], connect: Callable[..., fencedlock.Client]
) -> None:
    one, other = (own_server(cluster_enabled="yes") for _ in range(2))
    with one.client() as raw, other.client() as peer:
        raw.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
        peer.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16384))
        raw.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        eventually(
            lambda: all(
                "state:ok" in str(node.execute_command("CLUSTER", "INFO")) for node in (raw, peer)
            ),
            60,
        )
        names = {
            raw.execute_command("CLUSTER", "KEYSLOT", f"n{number}") < 8192: f"n{number}"
            for number in range(50)
        }
    client = connect(one.url, ttl=5)
    with client.FairLock(names[True]):
        pass
    begun = time.monotonic()
    with pytest.raises(fencedlock.BackendMisconfiguredError, match="node of a Redis Cluster"):
        client.FairLock(names[False]).acquire()
    with pytest.raises(fencedlock.BackendMisconfiguredError, match="node of a Redis Cluster"):
        connect(f"redis://127.0.0.1:{one.port}/1").RLock("x").acquire()
    assert time.monotonic() - begun < 2


def test_tls_works_with_the_authority_named(
    tls: tuple[RedisServer, int, Path],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    _, port, authority = tls
    client = connect(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}", ttl=10)
    waiter, lock = contender("thread", client), client.FairLock("x")
    with lock:
        waiter.tell("acquire", "x")
        eventually(lambda: lock.info().waiters)
    assert waiter.answer() is True
    waiter.ask("release", "x")


# CPython leaves a socket open whose peer resets just before the handshake, as on a busy machine.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("call", ["acquire", "try", "acquire in time"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rediss://127.0.0.1:{tls}/0", "certificate is not trusted"),
        ("rediss://localhost:{tls}/0?ssl_ca_certs={authority}", "certificate is not trusted"),
        ("rediss://127.0.0.1:{plain}/0", "does not speak TLS at this port: use redis://"),
        ("redis://127.0.0.1:{tls}/0", "speaks TLS at this port: use rediss://"),
        ("redis://:password@127.0.0.1:{tls}/0", "speaks TLS at this port: use rediss://"),
    ],
)
def test_tls_that_is_set_up_wrongly_is_one_clear_error_at_once(
    url: str,
    words: str,
    call: str,
    tls: tuple[RedisServer, int, Path],
    connect: Callable[..., fencedlock.Client],
) -> None:
    server, port, authority = tls
    lock = connect(url.format(tls=port, plain=server.port, authority=authority), ttl=30).RLock("x")
    ways: dict[str, dict[str, Any]] = {
        "acquire": {},
        "try": {"blocking": False},
        "acquire in time": {"timeout": 4},
    }
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(fencedlock.BackendMisconfiguredError, match=words) as caught:
            lock.acquire(**ways[call])
        assert time.monotonic() - begun < 2
        assert "password" not in str(caught.value)
    # Wait for this before the server ends
    eventually(lambda: not lock._client._table.backend.connections._dials)  # type: ignore[attr-defined]
