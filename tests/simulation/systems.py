"""The kinds of lock servers that are simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tests.faults.rules import Bounds
from tests.simulation.nemeses import SimulatedNemesis
from tests.simulation.network import Link
from tests.simulation.primitives import Patches
from tests.simulation.world import Process, World

SOCKET_TIMEOUT_SECONDS = 0.5


class System(Protocol):
    """One kind of server, and how the library reaches it in a simulated world."""

    url: str
    lease_seconds: float
    bounds: Bounds
    nemeses: Mapping[str, SimulatedNemesis]

    def server(self, world: World) -> Any:
        """Return a new server, or cluster, of this world."""

    def backend(self, client_id: str, process: Process, server: Any, link: Link) -> Any:
        """Return the library's backend for a client in this process."""

    def patch(self, patches: Patches) -> None:
        """Give the library the simulated network in place of the real one."""


class RedisSystem:
    """Implements :class:`System`. The library's packing, reading and scripts are the real ones."""

    url = "redis:"
    lease_seconds = 0.8

    def __init__(self) -> None:
        from fencedlock.backends.redis import backend, server
        from tests.simulation import redis_nemeses, redis_network

        self._library = backend
        self._server = server
        self._network = redis_network
        self.nemeses: Mapping[str, SimulatedNemesis] = redis_nemeses.NEMESES
        self.bounds = Bounds(
            self.lease_seconds,
            slack_seconds=1.0,
            clock_step_seconds=redis_nemeses.MOST_STEP_LEASES * self.lease_seconds,
        )

    def server(self, world: World) -> Any:
        return self._network.Server(world)

    def backend(self, client_id: str, process: Process, server: Any, link: Link) -> Any:
        from fencedlock.backends.redis.scripts import scripts_of

        connector: Any = self._network.Connector(process, server, link)
        backend: Any = self._library.RedisBackend(
            connector, client_id, "fencedlock", SOCKET_TIMEOUT_SECONDS, scripts_of(), lambda: None
        )
        backend.check_settings = lambda _seconds: []
        return backend

    def patch(self, patches: Patches) -> None:
        patches.set(self._server, "Connections", self._network.Connections)
        patches.set(self._server, "Inbox", self._network.Inbox)


class EtcdSystem:
    """Implements :class:`System`. All of the library's own code is real; gRPC is simulated."""

    url = "etcd:"
    lease_seconds = 2.0

    def __init__(self) -> None:
        from fencedlock.backends.etcd import backend, connections
        from tests.simulation import etcd_nemeses, etcd_network

        self._library = backend
        self._connections: Any = connections
        self._network = etcd_network
        self.nemeses: Mapping[str, SimulatedNemesis] = etcd_nemeses.NEMESES
        self.bounds = Bounds(
            self.lease_seconds,
            # Two requests, the patience with the waiters of a free lock, and a withdrawal.
            slack_seconds=2.0,
            # An election, a whole term from the new leader, and the interval at which it looks.
            expiry_seconds=2.0 + self.lease_seconds + 0.5,
            precision_seconds=1.0,
            grace_seconds=0.2,
        )

    def server(self, world: World) -> Any:
        return self._network.Cluster(world)

    def backend(self, client_id: str, process: Process, server: Any, link: Link) -> Any:  # noqa: ARG002
        from fencedlock.backends.etcd.settings import Settings

        members: list[str] = [f"member:{member.number}" for member in server.members]
        process.world.rng.shuffle(members)
        connected = self._connections.Connections(Settings(tuple(members)))
        connected._grpc = self._network.grpc_of(process, link, server)
        backend: Any = self._library.EtcdBackend(connected, "fencedlock", SOCKET_TIMEOUT_SECONDS)
        backend.check_settings = lambda _seconds: []
        return backend

    def patch(self, patches: Patches) -> None:
        patches.set(self._connections, "core", self._connections.Core())


SYSTEMS: dict[str, type[RedisSystem | EtcdSystem]] = {
    "redis": RedisSystem,
    "etcd": EtcdSystem,
}
