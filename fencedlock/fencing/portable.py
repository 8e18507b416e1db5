"""A check in SQL that every database understands.

SQLAlchemyFence and DjangoFence use it for databases that have no fence of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fencedlock.fencing.sql import Gives, SQLFence, Statement, Steps
from fencedlock.token import FencingToken

MOST_PORTABLE_CHARACTERS = 400
"""The number of characters that a key column can hold in any database."""


class PortableFence(SQLFence):
    """A table of fences in any database; its check takes up to three statements.

    SQLAlchemy or Django make the table, because they know the types of their databases.
    """

    def __init__(self, table: str, quoted: Callable[[str], str]) -> None:
        self._quote_part = quoted
        super().__init__(table)

    def quote_part(self, part: str) -> str:
        return self._quote_part(part)

    def ddl(self) -> str:
        raise NotImplementedError("the table is made by SQLAlchemy or Django")

    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        values = {"resource": resource, "token": int(token), "lock": token.lock}
        columns = tuple(self._quoted(name) for name in ("resource", "token", "lock_name"))
        key, number, lock = columns
        raise_it = Statement(
            f"UPDATE {self._table} SET {number} = :token, {lock} = :lock WHERE {key} = :resource "
            f"AND {number} <= :token AND ({lock} IS NULL OR {lock} = :lock)",
            values,
            Gives.COUNT,
        )
        if (yield raise_it):
            return
        # Before the first INSERT there is no row to lock. If two transactions made a SELECT FOR
        # UPDATE that finds nothing, and then an INSERT, they would deadlock.
        insert = Statement(
            f"INSERT INTO {self._table} ({', '.join(columns)}) VALUES (:resource, :token, :lock)",
            values,
            Gives.INSERTED,
        )
        if (yield insert) or (yield raise_it):
            return
        found = Statement(
            f"SELECT {number}, {lock} FROM {self._table} WHERE {key} = :resource",
            {"resource": resource},
            Gives.ROW,
        )
        raise self.refused(token, resource, *((yield found) or (None, None)))

    # The error codes of these databases are not known.
    def code_of(self, error: Exception) -> Any:  # noqa: ARG002
        return None
