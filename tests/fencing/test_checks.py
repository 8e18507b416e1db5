"""Which tokens a check accepts and refuses. It is the same in every SQL store."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from tests.fencing.stores import STORES, Store

LOCK = "accounts/a"


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, open_store: Callable[..., Store]) -> Store:
    return open_store(request.param)


def token(value: int, lock: str = LOCK) -> FencingToken:
    return FencingToken(lock, value)


def write(store: Store, token: FencingToken, balance: int) -> None:
    store.begin()
    try:
        store.check(token)
        store.run(f"UPDATE accounts SET balance = {balance} WHERE id = 'a'")
    except BaseException:
        store.rollback()
        raise
    store.commit()


def balance(store: Store) -> int:
    store.begin()
    ((found,),) = store.run("SELECT balance FROM accounts WHERE id = 'a'")
    store.rollback()
    return int(found)


def fences(store: Store) -> list[tuple[int, str]]:
    """Return the tokens and locks in the table of fences, in the order of the tokens."""
    store.begin()
    rows = store.run("SELECT token, lock_name FROM fences ORDER BY token")
    store.rollback()
    return [
        (int(number), lock.decode() if isinstance(lock, bytes | bytearray) else lock)
        for number, lock in rows
    ]


def test_equal_and_higher_tokens_pass_and_lower_ones_do_not(store: Store) -> None:
    big = 1_795_217_931_444_040
    write(store, token(big), 1)
    write(store, token(big), 2)
    write(store, token(big + 1), 3)
    with pytest.raises(StaleTokenError, match="is stale") as caught:
        write(store, token(big), 4)
    assert (caught.value.presented, caught.value.stored, caught.value.lock) == (big, big + 1, LOCK)
    assert caught.value.token == token(big)
    assert balance(store) == 3
    write(store, token(2**63 - 1), 5)
    assert fences(store) == [(2**63 - 1, LOCK)]


def test_a_claim_without_a_write_refuses_whoever_is_older(store: Store) -> None:
    store.begin()
    store.check(token(7))
    store.commit()
    with pytest.raises(StaleTokenError):
        write(store, token(6), 1)


def test_what_is_rolled_back_is_not_remembered(store: Store) -> None:
    write(store, token(5), 1)
    store.begin()
    store.check(token(9))
    store.rollback()
    write(store, token(6), 2)
    assert fences(store) == [(6, LOCK)]


def test_numbers_are_compared_as_numbers(store: Store) -> None:
    write(store, token(9), 1)
    write(store, token(10), 2)
    with pytest.raises(StaleTokenError):
        write(store, token(9), 3)


def test_names_that_look_alike_are_different_resources(store: Store) -> None:
    names = ["a", "A", "a ", "á", "a%s", "a:b", "ｶ'\"`\\", secrets.token_hex(1300)]
    for number, name in enumerate(names):
        write(store, token(100 - number, name), number)
    assert [lock for _, lock in fences(store)] == names[::-1]


def test_outside_of_a_transaction_it_is_refused(store: Store) -> None:
    store.turn_autocommit_on()
    with pytest.raises(
        ConfigurationError, match=r"outside of a transaction.* check the token first"
    ):
        store.check(token(1))
    with pytest.raises(ConfigurationError, match="outside of a transaction"):
        store.check(token(1))


def test_without_its_table_it_says_what_to_do(store: Store) -> None:
    store.begin()
    store.run("DROP TABLE fences")
    store.commit()
    store.begin()
    with pytest.raises(
        ConfigurationError, match=r"no table 'fences' in this database.*(create\(\)|run migrate)"
    ):
        store.check(token(1))
    store.rollback()


def test_with_another_table_it_says_what_to_do(store: Store) -> None:
    store.begin()
    store.run("DROP TABLE fences")
    store.run("CREATE TABLE fences (resource VARCHAR(100) PRIMARY KEY, token BIGINT NOT NULL)")
    store.commit()
    store.begin()
    with pytest.raises(ConfigurationError, match="other columns"):
        store.check(token(1))
    store.rollback()


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        "5",
        None,
        (LOCK, 5),
        FencingToken(LOCK, True),
        FencingToken(LOCK, -1),
        FencingToken(LOCK, 2**63),
    ],
    ids=repr,
)
def test_what_is_no_token_is_refused(open_store: Callable[..., Store], wrong: FencingToken) -> None:
    store = open_store("sqlite3")
    store.begin()
    with pytest.raises(TypeError, match=r"FencingToken|present the token"):
        store.check(wrong)
    store.rollback()


@pytest.mark.parametrize("name", ["", "x" * 2601, "nul\0", "\ud800"], ids=ascii)
def test_what_can_name_no_resource_is_refused(open_store: Callable[..., Store], name: str) -> None:
    store = open_store("sqlite3")
    store.begin()
    with pytest.raises(ConfigurationError, match="a lock's name must"):
        store.check(token(1, name))
    with pytest.raises(ConfigurationError, match="a lock's name must"):
        store.fence.check(store.connection, token(1, name), "resource")  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="a resource's name must"):
        store.fence.check(store.connection, token(1), name)  # type: ignore[attr-defined]
    store.rollback()


def test_a_resource_takes_the_tokens_of_one_lock_only(store: Store) -> None:
    write(store, token(5), 1)
    store.begin()
    store.run(
        "UPDATE fences SET resource = 'ledger'"
        if store.database_kind != "mysql"
        else "UPDATE fences SET resource = BINARY 'ledger'"
    )
    store.commit()
    store.begin()
    with pytest.raises(
        ConfigurationError,
        match=r"'ledger' is guarded by lock 'accounts/a', and this token is of lock 'ledger'",
    ) as caught:
        store.check(token(9, "ledger"))
    assert caught.value.token == token(9, "ledger")
    store.rollback()
    assert fences(store) == [(5, LOCK)]


def test_a_row_without_a_lock_takes_the_first_one(store: Store) -> None:
    store.begin()
    store.run(f"INSERT INTO fences (resource, token) VALUES ('{LOCK}', 4)")
    store.commit()
    with pytest.raises(StaleTokenError):
        write(store, token(3), 1)
    write(store, token(5), 2)
    assert fences(store) == [(5, LOCK)]


def test_the_table_is_made_once(store: Store) -> None:
    write(store, token(5), 1)
    store.create()
    assert fences(store) == [(5, LOCK)]
