"""A check in SQL that every database knows, for those that have no fence of their own: by SQLAlchemy and Django."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fencedlock.fencing.sql import Gives, SQLFence, Statement, Steps
from fencedlock.token import FencingToken

MOST_PORTABLE_CHARACTERS = 400
"""What the key of any database can hold."""


class PortableFence(SQLFence):
    """Up to three statements instead of one.

    The table is made by SQLAlchemy or Django, which know the types of their databases.
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
        # Before the first insert there is nothing to lock: a SELECT FOR UPDATE of nothing, then an
        # INSERT, would deadlock with another's.
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

    # These databases' codes are not known
    def code_of(self, error: Exception) -> Any:  # noqa: ARG002
        return None
