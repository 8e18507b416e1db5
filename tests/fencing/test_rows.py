"""Fences that keep the token in a column of the guarded row."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from tests.fencing.stores import STORES, AsyncStore, Store


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, open_store: Callable[..., Store]) -> Store:
    return open_store(request.param)


def check_row(
    store: Store, value: int, key: dict[str, object], table: str = "accounts", column: str = "fence"
) -> None:
    target = getattr(store, "session", None) or getattr(store, "connection", None) or store.alias  # type: ignore[attr-defined]
    done = store.fence.check_row(target, FencingToken("a", value), table, key, column=column)
    if isinstance(store, AsyncStore):
        store.wait(done)


def fence_of(store: Store) -> int:
    ((fence,),) = store.run("SELECT fence FROM accounts WHERE id = 'a'")
    return int(fence)


def test_a_row_refuses_lower_tokens(store: Store) -> None:
    for value in (5, 5, 6):
        store.begin()
        check_row(store, value, {"id": "a"})
        store.commit()
    store.begin()
    with pytest.raises(StaleTokenError) as caught:
        check_row(store, 5, {"id": "a"})
    assert (caught.value.presented, caught.value.stored) == (5, 6)
    assert fence_of(store) == 6
    store.rollback()


def test_a_row_that_is_not_there_can_not_be_fenced(store: Store) -> None:
    store.begin()
    with pytest.raises(ConfigurationError, match="no row of 'accounts'"):
        check_row(store, 5, {"id": "nobody"})
    store.rollback()


def test_outside_of_a_transaction_it_is_refused(store: Store) -> None:
    store.turn_autocommit_on()
    with pytest.raises(ConfigurationError, match="outside of a transaction"):
        check_row(store, 5, {"id": "a"})


def test_bad_names_and_keys_are_refused(open_store: Callable[..., Store]) -> None:
    store = open_store("sqlite3")
    store.begin()
    with pytest.raises(ConfigurationError, match="made of letters"):
        check_row(store, 5, {"id = id; --": 1})
    with pytest.raises(ConfigurationError, match="made of letters"):
        check_row(store, 5, {"id": 1}, table="a b")
    with pytest.raises(TypeError, match="key must name"):
        check_row(store, 5, {})
    store.rollback()


def test_without_the_column_it_says_what_to_do(store: Store) -> None:
    store.begin()
    store.run("CREATE TABLE plain (id VARCHAR(20) PRIMARY KEY)")
    store.commit()
    store.begin()
    with pytest.raises(ConfigurationError, match="ADD COLUMN fence BIGINT"):
        check_row(store, 5, {"id": "a"}, table="plain")
    store.rollback()


def test_a_column_that_does_not_take_the_token_is_refused(open_store: Callable[..., Store]) -> None:
    store = open_store("sqlite3")
    store.run(
        "CREATE TRIGGER t AFTER UPDATE ON accounts BEGIN UPDATE accounts SET fence = NULL; END"
    )
    store.begin()
    with pytest.raises(ConfigurationError, match="did not take the token"):
        check_row(store, 5, {"id": "a"})
    store.rollback()


def test_of_several_rows_none_may_have_seen_a_higher_one(open_store: Callable[..., Store]) -> None:
    store = open_store("sqlite3")
    store.begin()
    store.run("INSERT INTO accounts VALUES ('b', 0, 8)")
    store.commit()
    store.begin()
    with pytest.raises(StaleTokenError) as caught:
        check_row(store, 5, {"balance": 0})
    assert caught.value.stored == 8
    store.rollback()
    assert store.run("SELECT fence FROM accounts WHERE id = 'a'") == [(None,)]
