"""The demo's store: one account in a SQLite file, guarded by a SQLiteFence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fencedlock import FencingToken
from fencedlock.fencing.sqlite import SQLiteFence

BUSY_SECONDS = 30.0


class Account:
    """A balance, with a fence that knows the highest token that has touched it.

    Reading and writing are one transaction each, which checks the token before anything else.
    """

    def __init__(self, path: Path, *, check_tokens: bool) -> None:
        self._fence = SQLiteFence() if check_tokens else None
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS accounts (id TEXT PRIMARY KEY, balance INTEGER NOT NULL)"
        )
        self._connection.execute("INSERT INTO accounts VALUES ('a', 0) ON CONFLICT DO NOTHING")
        if self._fence is not None:
            self._fence.create(self._connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def read(self, token: FencingToken | None) -> int:
        """Return the balance.

        The token is checked here too, and not only by :meth:`write`. It claims the account: older
        holders can't write any more. Raises StaleTokenError if a higher token has been here.
        """
        with self._transaction(token):
            return self._balance()

    def write(self, token: FencingToken, balance: int) -> None:
        """Set the balance.

        Raises StaleTokenError, and writes nothing, if the account has seen a higher token.
        """
        with self._transaction(token):
            self._connection.execute("UPDATE accounts SET balance = ? WHERE id = 'a'", (balance,))

    def _balance(self) -> int:
        (balance,) = self._connection.execute(
            "SELECT balance FROM accounts WHERE id = 'a'"
        ).fetchone()
        return int(balance)

    @contextmanager
    def _transaction(self, token: FencingToken | None) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if token is not None and self._fence is not None:
                self._fence.check(self._connection, token)
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
