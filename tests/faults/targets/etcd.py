"""One etcd, or three."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.messages import messages
from fencedlock.errors import BackendError
from tests.etcd_servers import EtcdCluster, EtcdServer, find_etcd
from tests.faults.nemeses import EVERYBODY, NEMESES, Deed, Nemesis, down, frozen
from tests.faults.rules import Bounds

if TYPE_CHECKING:
    from tests.faults.run import Run


def kill_leader(run: Run, rng: random.Random) -> Deed:
    """``SIGKILL`` of the member that leads; it comes back with its data."""
    with run.server_mutex:
        yield from down(_cluster(run).leader())


def freeze_leader(run: Run, rng: random.Random) -> Deed:
    """``SIGSTOP`` of the member that leads, until after another one does."""
    with run.server_mutex:
        yield from frozen(_cluster(run).leader())


def compact(run: Run, rng: random.Random) -> Deed:
    """The whole history is compacted, and watches that lag behind are cancelled."""
    with run.server_mutex:
        yield EVERYBODY
        connections, known = run.target.members[0].connections(), messages()
        # Without a leader, or without news since the last time.
        with contextlib.suppress(BackendError):
            revision = connections.call(
                calls.RANGE, known.RangeRequest(key=b"x"), 5
            ).header.revision
            connections.call(calls.COMPACT, known.CompactRequest(revision=revision), 5)
        connections.close()
        yield ()


class EtcdTarget:
    """Implements :class:`tests.faults.targets.base.Target`, on one member."""

    lease_seconds = 1.0
    expiry_seconds = 2.0
    socket_timeout_seconds = 0.5
    nemeses: tuple[Nemesis, ...] = (*NEMESES, Nemesis("compact", compact, (0, 0)))

    def __init__(self, folder: Path, kind: str = "etcd") -> None:
        self.kind = kind
        self.folder = folder
        find_etcd(kind)
        self.members: list[EtcdServer] = self._make_members(kind)
        self.bounds = Bounds(
            self.lease_seconds,
            expiry_seconds=self.expiry_seconds,
            precision_seconds=1.0,
            grace_seconds=0.2,
        )

    def _make_members(self, kind: str) -> list[EtcdServer]:
        own = self.folder / "server"
        own.mkdir()
        return [EtcdServer(own, kind)]

    def why_not(self, _nemesis: str) -> str | None:
        """Why these servers can't suffer from it here."""
        return None

    def followers(self) -> list[EtcdServer]:
        return self.members

    def start(self) -> None:
        self.members[0].start()

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    def ports(self) -> list[int]:
        return [member.port for member in self.members]

    def url(self, endpoints: Sequence[str]) -> str:
        return f"etcd://{','.join(endpoints)}"

    def leftovers(self, name: str) -> set[str]:
        return self.members[0].leftovers(name) - {":withdrawn"}


class EtcdClusterTarget(EtcdTarget):
    """Implements :class:`tests.faults.targets.base.Target`, on three members."""

    lease_seconds = 2.0
    expiry_seconds = 3.0
    nemeses = (
        *EtcdTarget.nemeses,
        Nemesis("kill-leader", kill_leader, (0, 1)),
        # A leader of old revokes leases when it wakes: issue 15247 of etcd, mitigated in its
        # releases of 2024.
        Nemesis(
            "freeze-leader", freeze_leader, (0.7, 2), breaks_exclusion=True, aftermath_leases=1.0
        ),
    )

    def __init__(self, folder: Path, kind: str = "etcd") -> None:
        super().__init__(folder, kind)
        self.kind = "etcd-cluster"

    def _make_members(self, kind: str) -> list[EtcdServer]:
        self.cluster = EtcdCluster(self.folder, kind)
        return self.cluster.members

    def followers(self) -> list[EtcdServer]:
        leader = self.cluster.leader()
        return [member for member in self.members if member is not leader]

    def start(self) -> None:
        self.cluster.start()


def _cluster(run: Run) -> EtcdCluster:
    assert isinstance(run.target, EtcdClusterTarget)
    return run.target.cluster
