"""What goes wrong with a simulated etcd cluster, and with its clients."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.simulation.nemeses import EVERYBODY, OF_CLIENTS, Damage, SimulatedNemesis, nothing

if TYPE_CHECKING:
    from tests.simulation.etcd_network import Member
    from tests.simulation.run import Run


def _freeze(members: list[Member]) -> Damage:
    frozen = [member for member in members if member.is_healthy]
    for member in frozen:
        member.freeze()

    def thaw() -> None:
        for member in frozen:
            if member.is_frozen:
                member.thaw()

    return EVERYBODY, thaw


def _kill(members: list[Member]) -> Damage:
    killed = [member for member in members if not member.is_down]
    for member in killed:
        member.kill()

    def start() -> None:
        for member in killed:
            member.start()

    return EVERYBODY, start


def freeze_member(run: Run, rng: random.Random) -> Damage:
    return _freeze([rng.choice(run.server.members)])


def freeze_leader(run: Run, _rng: random.Random) -> Damage:
    leader = run.server.leader
    return _freeze([] if leader is None else [leader])


def freeze_majority(run: Run, rng: random.Random) -> Damage:
    return _freeze(rng.sample(run.server.members, 2))


def kill_member(run: Run, rng: random.Random) -> Damage:
    return _kill([rng.choice(run.server.members)])


def restart_cluster(run: Run, _rng: random.Random) -> Damage:
    return _kill(run.server.members)


def change_leader(run: Run, _rng: random.Random) -> Damage:
    run.server.change_leader()
    return EVERYBODY, nothing


NEMESES: dict[str, SimulatedNemesis] = {
    nemesis.name: nemesis
    for nemesis in (
        *OF_CLIENTS,
        SimulatedNemesis("freeze-member", freeze_member, (0.1, 2)),
        SimulatedNemesis("freeze-leader", freeze_leader, (0.5, 2)),
        SimulatedNemesis("freeze-majority", freeze_majority, (0.1, 1.5)),
        SimulatedNemesis("kill-member", kill_member, (0, 1)),
        SimulatedNemesis("restart-cluster", restart_cluster, (0, 0.7)),
        SimulatedNemesis("change-leader", change_leader, (0, 0)),
    )
}
