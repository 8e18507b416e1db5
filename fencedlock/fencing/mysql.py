"""MySQLFence, for MySQL and MariaDB through PyMySQL, mysqlclient or mysql-connector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fencedlock.fencing.sql import Driver, Gives, Mistake, SQLFence, Statement, Steps
from fencedlock.token import FencingToken

IN_TRANSACTION = 1
"""The bit SERVER_STATUS_IN_TRANS of the protocol: a transaction is open."""


class PyMySQLDriver(Driver):
    """A connection of PyMySQL."""

    begin_words = "turn autocommit off, or begin one (START TRANSACTION, connection.begin())"

    def in_transaction(self) -> bool | None:
        return bool(self.connection.server_status & IN_TRANSACTION)

    def execute(self, sql: str, parameters: Any, gives: Gives) -> Any:
        with self.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchone() if gives is Gives.ROW else None

    def cursor(self) -> Any:
        """Return a cursor that gives plain rows, whatever kind the connection's own cursors are."""
        from pymysql.cursors import Cursor

        return self.connection.cursor(Cursor)


class MySQLClientDriver(PyMySQLDriver):
    """A connection of mysqlclient, which can't tell in autocommit mode if a transaction is open."""

    def in_transaction(self) -> bool | None:
        return None if self.connection.get_autocommit() else True

    def cursor(self) -> Any:
        from MySQLdb.cursors import Cursor

        return self.connection.cursor(Cursor)


class MySQLConnectorDriver(PyMySQLDriver):
    """A connection of mysql-connector-python."""

    def in_transaction(self) -> bool | None:
        return bool(self.connection.in_transaction)

    def cursor(self) -> Any:
        return self.connection.cursor(buffered=True, raw=False, dictionary=False)


class MySQLFence(SQLFence):
    """A table of fences in MySQL 5.7 or MariaDB 10.4 or newer, with InnoDB.

    The connections are those of PyMySQL, mysqlclient or mysql-connector. The isolation levels
    REPEATABLE READ, which is the default, and READ COMMITTED both work. The first plain read of a
    REPEATABLE READ transaction fixes what the transaction sees. If that read comes before the
    check, or if the transaction is begun by ``START TRANSACTION WITH CONSISTENT SNAPSHOT``, updates
    get lost. Only MariaDB with ``innodb_snapshot_isolation`` reports that.

    A statement that commits by itself, as DDL and ``begin()`` do, ends the protection by the check.
    When the first check of a new resource is rolled back, transactions that wait for it may get a
    deadlock (1213). Run the whole transaction again then.

    Names are stored and compared as bytes. ``SELECT CONVERT(resource USING utf8mb4), token FROM
    fences`` shows them as text. ``create`` commits the open transaction, as every DDL does here.
    """

    drivers: ClassVar[Mapping[tuple[str, str], type[Driver]]] = {
        ("pymysql", "Connection"): PyMySQLDriver,
        ("MySQLdb", "Connection"): MySQLClientDriver,
        ("mysql", "MySQLConnectionAbstract"): MySQLConnectorDriver,
        ("mysql", "PooledMySQLConnection"): MySQLConnectorDriver,
    }
    mistakes: ClassVar[Mapping[Any, Mistake]] = {
        1146: Mistake.NO_TABLE,
        1054: Mistake.NO_COLUMN,
        1305: Mistake.NO_TRANSACTION,
        1020: Mistake.READ_BEFORE,
        1142: Mistake.NO_RIGHTS,
        1290: Mistake.READ_ONLY,
        1792: Mistake.READ_ONLY,
    }
    quote: ClassVar[str] = "`"
    locking_read: ClassVar[str] = " FOR UPDATE"

    def ddl(self) -> str:
        return (
            f"CREATE TABLE IF NOT EXISTS {self._table} (\n"
            "    resource VARBINARY(2600) NOT NULL PRIMARY KEY,\n"
            "    token BIGINT NOT NULL,\n"
            "    lock_name VARBINARY(2600)\n"
            ") ENGINE=InnoDB"
        )

    def check_steps(self, token: FencingToken, resource: str) -> Steps:
        # Names are sent in hexadecimal, so that connections with different character sets see the
        # same row. The count of affected rows does not tell whether the token was taken, so the row
        # is read back under its lock.
        names = {"resource": resource.encode().hex(), "lock": token.lock.encode().hex()}
        yield Statement(
            f"INSERT INTO {self._table} (resource, token, lock_name) VALUES (UNHEX(:resource), "
            ":token, UNHEX(:lock)) ON DUPLICATE KEY UPDATE token = IF(lock_name IS NULL OR "
            "lock_name = UNHEX(:lock), GREATEST(token, :token), token), lock_name = "
            "COALESCE(lock_name, UNHEX(:lock))",
            {**names, "token": int(token)},
        )
        stored, lock_hex = yield Statement(
            f"SELECT token, HEX(lock_name) FROM {self._table} WHERE resource = UNHEX(:resource) "
            "FOR UPDATE",
            names,
            Gives.ROW,
        )
        lock_name = bytes.fromhex(
            lock_hex if isinstance(lock_hex, str) else bytes(lock_hex).decode()
        ).decode()
        if lock_name != token.lock or int(stored) != int(token):
            raise self.refused(token, resource, stored, lock_name)

    def probe_steps(self) -> Steps:
        """Make and release a savepoint, which fails if no transaction is open.

        Outside of a transaction a savepoint is gone as soon as it is made.
        """
        yield Statement("SAVEPOINT fencedlock_check")
        yield Statement("RELEASE SAVEPOINT fencedlock_check")

    def code_of(self, error: Exception) -> Any:
        return error.args[0] if error.args else None
