"""What goes wrong in a simulated world, whatever server it has.

A deed does the damage at once. It returns who will suffer, and what heals it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tests.simulation.run import Run

Damage: TypeAlias = tuple[list[str], Callable[[], object]]
EVERYBODY = ["*"]


@dataclass(frozen=True)
class SimulatedNemesis:
    """One way to break things: its deed returns who will suffer, and what heals it."""

    name: str
    deed: Callable[[Run, random.Random], Damage]
    leases: tuple[float, float]
    """The shortest and the longest time that it lasts, in leases."""
    breaks_exclusion: bool = False
    """True if, as documented, two may believe to hold a lock at the same time after this."""
    not_with: tuple[str, ...] = ()
    """Other nemeses that the documentation does not promise to survive together with this one."""


def nothing() -> None:
    pass


def kill_client(run: Run, rng: random.Random) -> Damage:
    slot = rng.randrange(len(run.slots))
    name = run.slots[slot].process.name
    run.kill(slot)
    return [name], nothing


def freeze_client(run: Run, rng: random.Random) -> Damage:
    process = rng.choice(run.slots).process
    process.freeze()
    return [process.name], process.thaw


def _bent(run: Run, slot: int, **settings: Any) -> Damage:
    link = run.links[slot]
    vars(link).update(settings)
    return [f"p{slot}"], lambda: vars(link).update(dict.fromkeys(settings, 0.0))


def delay(run: Run, rng: random.Random) -> Damage:
    seconds = rng.choice([0.03, 0.1, 0.13, 0.7]) * run.lease_seconds
    return _bent(run, rng.randrange(len(run.slots)), delay_seconds=seconds)


def lose_replies(run: Run, rng: random.Random) -> Damage:
    return _bent(run, rng.randrange(len(run.slots)), lost_share=rng.choice([0.05, 0.2, 0.4]))


def late_packets(run: Run, rng: random.Random) -> Damage:
    seconds = rng.uniform(0.05, 2) * run.lease_seconds
    share = rng.choice([0.05, 0.2, 0.4])
    return _bent(run, rng.randrange(len(run.slots)), late_share=share, late_seconds=seconds)


def silence(run: Run, rng: random.Random) -> Damage:
    slot = rng.randrange(len(run.slots))
    link = run.links[slot]
    link.is_silent_up, link.is_silent_down = rng.choice(
        [(True, False), (False, True), (True, True)]
    )
    return [f"p{slot}"], link.speak


def cut(run: Run, rng: random.Random) -> Damage:
    slot = rng.randrange(len(run.slots))
    run.links[slot].cuts += 1
    run.server.cut(run.links[slot])
    return [f"p{slot}"], nothing


def raise_floor(run: Run, rng: random.Random) -> Damage:
    """Nobody suffers, but the tokens of a lock are ahead afterwards.

    On Redis, by less than a second they can't be distinguished from an estimate of the clock that
    is off.
    """
    run.raise_floor(rng.choice(["fair", "mixed"]), rng.choice([5, 100]))
    return [], nothing


OF_CLIENTS: tuple[SimulatedNemesis, ...] = (
    SimulatedNemesis("kill-client", kill_client, (0, 0)),
    SimulatedNemesis("freeze-client", freeze_client, (0.2, 2.5)),
    SimulatedNemesis("raise-floor", raise_floor, (0, 0)),
    SimulatedNemesis("cut", cut, (0, 0)),
    SimulatedNemesis("delay", delay, (0.5, 3)),
    SimulatedNemesis("silence", silence, (0.2, 2.5)),
    SimulatedNemesis("lose-replies", lose_replies, (0.3, 1.5)),
    SimulatedNemesis("late-packets", late_packets, (0.3, 1.5)),
)
"""What goes wrong with clients, their networks and their operators, whatever server they have."""


def drawn(nemeses: Mapping[str, SimulatedNemesis], seed: int) -> tuple[str, ...]:
    """Return the nemeses that this seed draws: none, some, or all that go together."""
    rng = random.Random(f"{seed} nemeses")
    chosen: list[SimulatedNemesis] = []
    for name in rng.sample(list(nemeses), rng.randint(0, len(nemeses))):
        nemesis = nemeses[name]
        if not any(
            nemesis.name in other.not_with or other.name in nemesis.not_with for other in chosen
        ):
            chosen.append(nemesis)
    return tuple(nemesis.name for nemesis in chosen)
