"""The guardian of an embedded server, a script that starts redis-server and ends it.

It ends the server when the last client has left, or when the folder is no longer there.

The first process that needs the server runs ``python guardian.py FOLDER REDIS-SERVER``. The script
uses only the standard library. It prints "ready", or what went wrong, on its standard output.

Every client process holds a shared ``flock`` on ``FOLDER/users.lock``. The kernel releases it when
the process dies, however it dies. The guardian waits for the exclusive ``flock``. When it gets it,
no client is left. It holds it until the server is gone, so that a new client waits and then starts
a new server.

Two servers must never serve holders of the same locks. Three measures prevent that:

- The server holds an exclusive ``flock`` on ``FOLDER/server.lock``. This lock becomes worthless if
  somebody deletes the file or the folder.
- On Linux, the server also has an abstract unix socket, whose name depends on the user and on the
  folder's path. Nobody can delete it.
- The guardian compares the folder's files with those that it opened, four times a second. If a file
  is missing or was replaced, it ends the server, and keeps the abstract socket until the last lease
  of that server has run out. So the holders learn of their loss before a new server starts.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

START_SECONDS = 30.0
SHUTDOWN_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.005
LOOK_AT_FOLDER_SECONDS = 0.25

TOUCH_SECONDS = 3600.0
"""The interval at which the files are marked as used, because cleaners of /tmp delete files that
nobody has used for days.
"""

ANSWER_SECONDS = 1.0

LEASES_SECONDS = 10.0
"""The time that a server that is to be ended has to report its leases. If the guardian assumed the
longest lease instead, others would have to wait longer.
"""

UNKNOWN_LEASE_SECONDS = 30.0
"""The lease that is assumed to be the longest if the server can't be asked: the default one."""

MOST_LEASE_SECONDS = 3600.0
"""The longest time for which the guardian waits for a lease to run out."""

NO_LEASES = (b":fence", b":queue", b":waiters", b":withdrawn")
"""Endings of keys that outlive the leases. Nobody holds a lock by such a key."""

MANIFEST = "appendonlydir/appendonly.aof.manifest"
FIRST_WITH_MANIFEST = 7
"""Redis 7, Valkey, and later servers keep their append-only file in several parts."""

_START_ANEW = "delete the folder when no process uses it"
_PR_SET_PDEATHSIG = 1
_KEYS_AT_ONCE = 500
_RESERVE_TRIES = 40


def main(folder: Path, redis_server: str) -> None:
    """Start the server, tell the caller the result, and watch until the server ends."""
    if os.fork():
        return  # so that no client is the parent of the guardian, which would leave a zombie
    os.setsid()
    try:
        files = Files(folder)
        name = reserve(folder)
    except BlockingIOError:
        print(
            "another server of this folder still lives, or has left leases that have not run out "
            "yet",
            flush=True,
        )
        return
    except OSError as error:
        print(f"the folder can't be used: {error.strerror}", flush=True)
        return
    if not can_read_data(folder, redis_server):
        print(
            f"{redis_server} is too old to read the data that a newer server has left there; "
            f"{_START_ANEW}",
            flush=True,
        )
        return
    server = subprocess.Popen(  # noqa: S603 - the binary was found by embedded.py
        [redis_server, *_settings(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        # The server inherits both, so they are held as long as the guardian or the server lives.
        pass_fds=(files.alive, *([] if name is None else [name.fileno()])),
        preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has only one thread
    )
    said = _wait_until_ready(server, folder)
    control = connection(folder) if said == "ready" else None
    files.remember()
    print(said, flush=True)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    if said != "ready":
        server.kill()
        server.wait()
        return
    guard = _Guard(server, files, control)
    threading.Thread(target=guard.end_after_last_user, daemon=True).start()
    threading.Thread(target=guard.end_if_replaced, daemon=True).start()
    server.wait()
    guard.wait_for_leases()


class Files:
    """The folder, and the files in it that this guardian opened.

    Raises BlockingIOError if a server of the folder lives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.alive: int = os.open("server.lock", flags, 0o600, dir_fd=self._folder)
        # The server inherits this lock, so it is free only if no server of this folder lives.
        fcntl.flock(self.alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.users: int = os.open("users.lock", flags, 0o600, dir_fd=self._folder)
        try:
            # systemd-tmpfiles does not clean a locked folder.
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass  # the folder is being cleaned at this moment
        opened = {".": self._folder, "server.lock": self.alive, "users.lock": self.users}
        self._opened = {
            name: _identity(os.fstat(descriptor)) for name, descriptor in opened.items()
        }
        self._must_exist: list[Path] = []

    def remember(self) -> None:
        """Add the files that the server has made: its socket, and the files with its data."""
        data = [self.folder / "appendonly.aof", self.folder / MANIFEST]
        # The server rewrites these from time to time, so their inodes change.
        self._must_exist = [path for path in data if path.exists()]
        try:
            self._opened["redis.sock"] = _identity((self.folder / "redis.sock").lstat())
        except OSError:
            pass

    def are_replaced(self) -> bool:
        """Return True if a file is missing, or if its path names another file than before."""
        try:
            return any(
                _identity((self.folder / name).lstat()) != opened
                for name, opened in self._opened.items()
            ) or not all(path.exists() for path in self._must_exist)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return True
        except OSError:
            return False  # the disk gives no answer at this moment

    def touch(self) -> None:
        """Mark the server's files as used."""
        for pattern in ("*.lock", "redis.*", "appendonly*", "appendonlydir/*"):
            for path in self.folder.glob(pattern):
                try:
                    os.utime(path)
                except OSError:
                    pass  # the server has just deleted it


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def reserve(folder: Path) -> socket.socket | None:
    """Take the abstract socket of the folder, and return it.

    Return None if the system has no abstract sockets, or if a process of another user has it.

    Raises BlockingIOError if a server of this user and this path has it, even if the folder was
    deleted or replaced since.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = folder.parent.resolve()
    # Containers may share the network and have folders of the same path, so the name contains the
    # device.
    device = parent.stat().st_dev
    path = hashlib.sha256(os.fsencode(parent / folder.name)).hexdigest()[:32]
    address = f"\0fencedlock/{os.geteuid()}/{device:x}/{path}"
    for _ in range(_RESERVE_TRIES):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(address)
            name.listen(1)
            return name
        except OSError as error:
            name.close()
            if error.errno != errno.EADDRINUSE:
                return None
        owner = _owner_of(address)
        if owner == os.geteuid():
            raise BlockingIOError
        if owner is not None:
            return None  # another user has taken the name, which nothing prevents
        time.sleep(LOOK_AGAIN_SECONDS)
    return None


def _owner_of(address: str) -> int | None:
    """Return the user whose process has the abstract socket.

    Return None if the process does not listen yet, or has just ended.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except BlockingIOError:
            # The queue of connections is full, because nobody accepts them. Assume the worst case.
            return os.geteuid()
        except OSError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])


def can_read_data(folder: Path, redis_server: str) -> bool:
    """Return False if the server is too old for the data in the folder.

    A server older than Redis 7 would overlook the data that a newer one has left there, and would
    grant locks that are held.
    """
    if not (folder / MANIFEST).exists():
        return True
    said = subprocess.run(  # noqa: S603
        [redis_server, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    version = re.search(r" v=(\d+)\.", said.stdout)
    return version is None or int(version[1]) >= FIRST_WITH_MANIFEST


def _settings(folder: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(folder / "redis.sock"),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "redis.log"),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes",
        # A server of any other version can read commands, but only newer ones can read a snapshot.
        "aof-use-rdb-preamble": "no",
        "auto-aof-rewrite-min-size": "1mb",
        "maxmemory-policy": "noeviction",
    }
    return [word for setting, value in settings.items() for word in (f"--{setting}", value)]


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies.

    This works on Linux only. Elsewhere the process lives on.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    except (OSError, AttributeError):
        pass


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path) -> str:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            return (
                f"it ended with status {server.returncode}: {_last_words(folder)}; if it can't "
                f"read its data, {_START_ANEW}"
            )
        if answers(folder):
            return "ready"
        time.sleep(LOOK_AGAIN_SECONDS)
    return f"it did not answer within {START_SECONDS:.0f} s: {_last_words(folder)}"


def answers(folder: Path) -> bool:
    """Return True if the server of the folder has loaded its data and answers commands."""
    probe = connection(folder)
    if probe is None:
        return False
    with probe:
        try:
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def connection(folder: Path) -> socket.socket | None:
    """Return a connection to the server of the folder, or None if there is no server."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(ANSWER_SECONDS)
    try:
        made.connect(str(folder / "redis.sock"))
    except OSError:
        made.close()
        return None
    return made


def _last_words(folder: Path) -> str:
    try:
        return " | ".join((folder / "redis.log").read_text(errors="replace").splitlines()[-3:])
    except OSError:
        return "it left no log"


class _Guard:
    """Ends the server when its last user has left or its folder is replaced, whichever is first."""

    def __init__(
        self, server: subprocess.Popen[bytes], files: Files, control: socket.socket | None
    ) -> None:
        self._server = server
        self._files = files
        self._control = control
        """A connection to the server. It is opened before anything can happen to the folder,
        because nobody can connect to a socket that was deleted.
        """
        self._mutex = threading.Lock()
        self._leases_end_at = 0.0

    def end_after_last_user(self) -> None:
        fcntl.flock(self._files.users, fcntl.LOCK_EX)
        if self._files.are_replaced():
            self._end_replaced()  # the users have not left, they have entered the new folder
            return
        self._server.terminate()
        try:
            self._server.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()

    def end_if_replaced(self) -> None:
        touch_at = 0.0
        while not self._files.are_replaced():
            if time.monotonic() >= touch_at:
                self._files.touch()
                touch_at = time.monotonic() + TOUCH_SECONDS
            time.sleep(LOOK_AT_FOLDER_SECONDS)
        self._end_replaced()

    def _end_replaced(self) -> None:
        with self._mutex:
            if not self._leases_end_at:
                seconds = min(_stop_granting(self._control), MOST_LEASE_SECONDS)
                self._leases_end_at = time.monotonic() + seconds
                self._server.kill()

    def wait_for_leases(self) -> None:
        """Wait until all leases that the server of a replaced folder granted have run out.

        Then no holder can rely on one of them any more.
        """
        with self._mutex:
            seconds = self._leases_end_at - time.monotonic()
        if seconds > 0:
            time.sleep(seconds)


def _stop_granting(control: socket.socket | None) -> float:
    """Stop the server from granting and renewing, and return how long its leases still last.

    The time is in seconds.
    """
    if control is None:
        return UNKNOWN_LEASE_SECONDS
    try:
        control.settimeout(LEASES_SECONDS)
        with cast("BinaryIO", control.makefile("rwb")) as stream:
            # Servers before 6.2 refuse this command. They may renew a lease until they are killed,
            # a moment later.
            _ask(stream, [[b"CLIENT", b"PAUSE", b"3600000", b"WRITE"]])
            (keys,) = _ask(stream, [[b"KEYS", b"*"]])
            leases = [key for key in keys if not key.endswith(NO_LEASES)]
            longest_ms = 0
            for first in range(0, len(leases), _KEYS_AT_ONCE):
                longest_ms = max(
                    longest_ms,
                    *_ask(
                        stream, [[b"PTTL", key] for key in leases[first : first + _KEYS_AT_ONCE]]
                    ),
                )
    except (OSError, ValueError, TypeError, AttributeError):  # no answer, or an error as the answer
        return UNKNOWN_LEASE_SECONDS
    return longest_ms / 1000


def _ask(stream: BinaryIO, commands: list[list[bytes]]) -> list[Any]:
    stream.writelines(_encoded(command) for command in commands)
    stream.flush()
    return [_reply(stream) for _ in commands]


def _encoded(command: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(
        b"$%d\r\n%s\r\n" % (len(word), word) for word in command
    )


def _reply(stream: BinaryIO) -> Any:
    line = stream.readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b"*":
        return [_reply(stream) for _ in range(int(rest))]
    if kind == b"$":
        return stream.read(int(rest) + 2)[:-2]
    if kind == b":":
        return int(rest)
    if kind in (b"+", b"-"):
        return rest
    raise ValueError(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
