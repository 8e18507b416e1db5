"""What is special about SQLite: its ways to begin a transaction, and reads before the check."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.sqlite import SQLiteFence

OLD, NEW = FencingToken("accounts/a", 5), FencingToken("accounts/a", 6)
FENCE = SQLiteFence()


@pytest.fixture
def connect(tmp_path: Path) -> Any:
    made: list[sqlite3.Connection] = []

    def open_it(**settings: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(tmp_path / "a.db", timeout=0.1, **settings))
        return made[-1]

    first = open_it()
    first.execute("PRAGMA journal_mode = WAL")
    FENCE.create(first)
    first.execute("CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INTEGER)")
    first.execute("INSERT INTO accounts VALUES ('a', 0)")
    first.commit()
    yield open_it
    for connection in made:
        connection.close()


@pytest.mark.parametrize("level", ["", "IMMEDIATE", "DEFERRED"])
def test_python_s_own_begin_will_do(connect: Callable[..., sqlite3.Connection], level: str) -> None:
    connection, other = connect(isolation_level=level), connect(isolation_level=None)
    FENCE.check(connection, NEW)  # the first statement begins the transaction
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    connection.commit()
    with pytest.raises(StaleTokenError):
        FENCE.check(connection, OLD)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3's autocommit came with Python 3.12")
def test_autocommit_as_of_python_3_12(connect: Callable[..., sqlite3.Connection]) -> None:
    connection = connect(autocommit=False)
    FENCE.check(connection, NEW)
    connection.commit()
    with pytest.raises(ConfigurationError, match="BEGIN IMMEDIATE"):
        FENCE.check(connect(autocommit=True), FencingToken("b", 1))


def test_reading_before_the_check_is_named_as_the_cause(
    connect: Callable[..., sqlite3.Connection],
) -> None:
    ours, theirs = connect(isolation_level=None), connect(isolation_level=None)
    ours.execute("BEGIN")
    ours.execute("SELECT balance FROM accounts").fetchall()
    theirs.execute("UPDATE accounts SET balance = 1")
    with pytest.raises(ConfigurationError, match=r"has read before the check.*BEGIN IMMEDIATE"):
        FENCE.check(ours, NEW)


def test_factories_of_rows_and_texts_do_not_matter(
    connect: Callable[..., sqlite3.Connection],
) -> None:
    connection = connect()
    connection.row_factory = lambda _, row: {"row": row}
    connection.text_factory = bytes
    FENCE.check(connection, NEW)
    with pytest.raises(StaleTokenError):
        FENCE.check(connection, OLD)
    with pytest.raises(ConfigurationError, match="guarded by lock 'accounts/a'"):
        FENCE.check(connection, FencingToken("b", 9), "accounts/a")


def test_a_text_in_the_table_is_refused(connect: Callable[..., sqlite3.Connection]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        connect().execute("INSERT INTO fences VALUES ('x', 'many', NULL)")


@pytest.mark.parametrize("table", ["", "a b", 'x"', "1x", "a..b", 5])
def test_bad_names_of_tables_are_refused(table: str) -> None:
    with pytest.raises(ConfigurationError, match="made of letters"):
        SQLiteFence(table)


def test_another_table_of_an_attached_database(
    connect: Callable[..., sqlite3.Connection], tmp_path: Path
) -> None:
    connection = connect()
    connection.execute("ATTACH ? AS side", (str(tmp_path / "b.db"),))
    fence = SQLiteFence("side.Fences")
    fence.create(connection)
    fence.check(connection, NEW)
    with pytest.raises(StaleTokenError):
        fence.check(connection, OLD)
    assert repr(fence) == "SQLiteFence('side.Fences')"
