"""The code of each how-to runs as it stands there, block after block."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import DatabaseServer
from tests.etcd_servers import EtcdServer
from tests.fencing.stores import Psycopg, PyMySQL, Store
from tests.servers import RedisServer

FOLDER = Path(__file__).parents[2] / "docs" / "fencing"
ACCOUNTS = (
    "CREATE TABLE accounts (id VARCHAR(20) PRIMARY KEY, balance BIGINT NOT NULL)",
    "INSERT INTO accounts VALUES ('a', 100)",
)
DATABASES = {
    "postgresql": "postgresql",
    "sqlalchemy": "postgresql",
    "django": "postgresql",
    "mysql": "mysql",
}

pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason="the documentation is not here: run the tests of a clone"
)


def code_of(page: Path) -> str:
    """All Python of the page, with the lines at their numbers."""
    lines = []
    indent: str | None = None
    for line in page.read_text("utf-8").splitlines():
        if indent is not None and line and not line.startswith(indent):
            indent = None
        lines.append("" if indent is None else line.removeprefix(indent))
        begun = re.fullmatch(r"( *)\.\. code-block:: python", line)
        if begun:
            indent = begun[1] + "   "
    return "\n".join(lines)


USES_THE_INDEX = """
async def work(token):
    await asyncio.sleep(0.01)
    return int(token)

async def main():
    return await asyncio.gather(*(handler(work) for _ in range(3)))

assert len(set(asyncio.run(main()))) == 3, "each task had a hold of its own"
"""


def fill(store: Store) -> None:
    store.begin()
    for statement in ACCOUNTS:
        store.run(statement)
    store.commit()
    store.close()


@pytest.mark.parametrize("page", sorted(path.stem for path in FOLDER.glob("*.rst")))
def test_its_code_runs(
    page: str,
    database_server: Callable[[str], DatabaseServer],
    server: RedisServer,
    etcd_server: EtcdServer,
    tmp_path: Path,
) -> None:
    environment = os.environ | {
        "FENCEDLOCK_URL": server.url,
        "REDIS_URL": server.url,
        "ETCD_URL": etcd_server.url,
        "HOME": str(tmp_path),
    }
    kind = DATABASES.get(page, "sqlite")
    if kind == "postgresql":
        database = database_server(kind).new_database("shop")
        environment |= {"PGHOST": database["host"], "PGUSER": database["user"]}
        fill(Psycopg(database))
    elif kind == "mysql":
        database = database_server(kind).new_database("shop")
        fill(PyMySQL(database))
        (tmp_path / ".my.cnf").write_text(
            f"[client]\nsocket = {database['unix_socket']}\nuser = {database['user']}\n"
        )
    else:
        connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
        for statement in ACCOUNTS:
            connection.execute(statement)
        connection.close()
    code = code_of(FOLDER / f"{page}.rst") + (USES_THE_INDEX if page == "index" else "")
    assert "FairLock" in code
    program = tmp_path / f"howto_{page}.py"  # not the name of what it imports
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    if kind == "sqlite" and page in ("sqlite", "http"):
        connection = sqlite3.connect(tmp_path / "shop.db")
        assert connection.execute("SELECT balance FROM accounts").fetchall() == [
            (100 if page == "sqlite" else 70,)
        ]
        connection.close()
