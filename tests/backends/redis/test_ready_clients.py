"""Ready client objects of redis-py and valkey-py, in every configuration that users have."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.backoff
import redis.retry
import valkey

import fencedlock
from tests.conftest import eventually
from tests.contenders import visit
from tests.servers import RedisServer

CLIENTS: dict[str, Callable[[RedisServer], Any]] = {
    "plain": lambda server: redis.Redis(port=server.port),
    "decoding": lambda server: redis.Redis(port=server.port, decode_responses=True),
    "RESP2": lambda server: redis.Redis(port=server.port, protocol=2),
    "RESP3": lambda server: redis.Redis(port=server.port, protocol=3, decode_responses=True),
    "retrying": lambda server: redis.Redis(
        port=server.port, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(1), 5)
    ),
    "no timeout": lambda server: redis.Redis(
        port=server.port, socket_timeout=None, health_check_interval=1
    ),
    "pool of one": lambda server: redis.Redis(
        connection_pool=redis.BlockingConnectionPool(port=server.port, max_connections=1, timeout=1)
    ),
    "unix socket": lambda server: redis.Redis(unix_socket_path=server.socket, db=1),
    "latin-1": lambda server: redis.Redis(
        port=server.port, encoding="latin-1", decode_responses=True
    ),
    "single connection": lambda server: redis.Redis(
        port=server.port, single_connection_client=True
    ),
    "valkey": lambda server: valkey.Valkey(port=server.port),
    "valkey RESP3": lambda server: valkey.Valkey(
        port=server.port, protocol=3, decode_responses=True
    ),
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_locks_work_through_it(
    kind: str, server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    ready = CLIENTS[kind](server)
    client = connect(ready, ttl=5)
    lock = client.FairLock(f"{name}/ü")
    tokens = []
    with lock as token, lock:
        assert lock.info().count == 2
        waiter = threading.Thread(target=lambda: tokens.append(visit(client.FairLock(lock.name))))
        waiter.start()
        eventually(lambda: lock.info().waiters)
        lock.renew()
    waiter.join(10)
    assert tokens[0] > token
    assert [info.name for info in client.locks(name)] == []
    assert ready.ping()  # the user's client still works
    ready.close()


def test_an_asyncio_client_is_refused() -> None:
    with pytest.raises(fencedlock.ConfigurationError, match="asyncio"):
        fencedlock.connect(redis.asyncio.Redis())


@pytest.mark.parametrize("target", [None, 42, object(), b"redis://localhost"])
def test_what_is_no_client_is_refused(target: object) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match=r"pass a URL or a redis\.Redis"):
        fencedlock.connect(target)


def test_a_url_has_its_database_and_its_options(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client = connect(f"redis://127.0.0.1:{server.port}/3?client_name=billing&socket_timeout=1")
    with client.RLock(name), redis.Redis(port=server.port, db=3) as raw:
        assert raw.exists(f"fencedlock:{{{name}}}")
        assert "billing" in {connection["name"] for connection in raw.client_list()}
    unix = connect(f"unix://{server.socket}?db=3")
    assert unix.inspect(name).locked is False


def test_a_namespace_keeps_locks_apart(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    one, two = connect(server.url), connect(server.url, namespace="other")
    with one.RLock(name), two.RLock(name):
        assert [info.name for info in two.locks(name)] == [name]


def test_a_handle_of_a_ready_client_can_not_be_pickled(
    server: RedisServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    with (
        redis.Redis(port=server.port) as ready,
        pytest.raises(TypeError, match="connect with a URL"),
    ):
        pickle.dumps(connect(ready).RLock(name))
