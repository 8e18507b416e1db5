"""What is special about MariaDB: character sets, isolation, kinds of rows, simultaneous inserts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pymysql.cursors
import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.mysql import MySQLFence
from tests.fencing.stores import Database

OLD, NEW = FencingToken("accounts/é", 5), FencingToken("accounts/é", 6)
FENCE = MySQLFence()


@pytest.fixture
def connect(new_database: Callable[[str], Database]) -> Iterator[Callable[..., Any]]:
    database, made = new_database("mysql"), []

    def open_it(**settings: Any) -> Any:
        made.append(pymysql.connect(**database, **settings))  # type: ignore[call-overload]
        return made[-1]

    FENCE.create(open_it())
    yield open_it
    for connection in made:
        connection.close()


def test_connections_of_two_character_sets_see_one_row(connect: Callable[..., Any]) -> None:
    latin, utf = connect(charset="latin1"), connect(charset="utf8mb4")
    FENCE.check(latin, NEW)
    latin.commit()
    with pytest.raises(StaleTokenError):
        FENCE.check(utf, OLD)


def test_in_a_transaction_begun_by_hand(connect: Callable[..., Any]) -> None:
    connection = connect(autocommit=True, cursorclass=pymysql.cursors.DictCursor)
    connection.begin()
    FENCE.check(connection, NEW)
    connection.commit()
    connection.begin()
    with pytest.raises(StaleTokenError):
        FENCE.check(connection, OLD)


def test_a_snapshot_does_not_hide_a_newer_token(connect: Callable[..., Any]) -> None:
    ours, theirs = connect(), connect()
    FENCE.check(theirs, OLD)
    theirs.commit()
    ours.cursor().execute("SELECT * FROM fences")  # in REPEATABLE READ, this takes the snapshot
    FENCE.check(theirs, NEW)
    theirs.commit()
    with pytest.raises(StaleTokenError):
        FENCE.check(ours, OLD)


def test_reading_before_the_check_is_named_as_the_cause_where_the_server_tells(
    connect: Callable[..., Any],
) -> None:
    ours, theirs = connect(), connect()
    try:
        ours.cursor().execute("SET innodb_snapshot_isolation = ON")
    except pymysql.err.OperationalError:
        pytest.skip("this server has no innodb_snapshot_isolation")
    FENCE.check(theirs, OLD)
    theirs.commit()
    ours.cursor().execute("SELECT * FROM fences")
    FENCE.check(theirs, NEW)
    theirs.commit()
    with pytest.raises(ConfigurationError, match="has read before the check"):
        FENCE.check(ours, FencingToken("accounts/é", 7))


def test_many_first_writes_at_once_do_not_deadlock(connect: Callable[..., Any]) -> None:
    failed: list[Exception] = []
    connections = [connect() for _ in range(8)]
    barrier = threading.Barrier(8)

    def write(connection: Any) -> None:
        try:
            for round_number in range(10):
                barrier.wait()
                FENCE.check(connection, FencingToken(f"new/{round_number}", 1))
                connection.commit()
        except Exception as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=write, args=[connection]) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
