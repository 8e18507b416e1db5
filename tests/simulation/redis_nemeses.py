"""What goes wrong in the simulated world of a Redis server.

A deed does the damage at once. It returns who will suffer, and what heals it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tests.simulation.run import Run

Damage: TypeAlias = tuple[list[str], Callable[[], object]]
EVERYBODY = ["*"]
MOST_STEP_LEASES = 2.0
"""The greatest step of the server's clock, in leases."""


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


def _nothing() -> None:
    pass


def kill_client(run: Run, rng: random.Random) -> Damage:
    slot = rng.randrange(len(run.slots))
    name = run.slots[slot].process.name
    run.kill(slot)
    return [name], _nothing


def freeze_client(run: Run, rng: random.Random) -> Damage:
    process = rng.choice(run.slots).process
    process.freeze()
    return [process.name], process.thaw


def freeze_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, _nothing
    run.server.freeze()
    return EVERYBODY, run.server.thaw


def restart_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, _nothing
    run.server.kill()
    return EVERYBODY, run.server.start


def wipe_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, _nothing
    run.server.kill()
    return EVERYBODY, lambda: run.server.start(with_data=False)


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
    for inbox in run.server.all_inboxes():
        if inbox._connector.link is run.links[slot]:
            inbox.cut()
    return [f"p{slot}"], _nothing


def flush_scripts(run: Run, _rng: random.Random) -> Damage:
    run.server.forget_scripts()
    return EVERYBODY, _nothing


def kill_inboxes(run: Run, _rng: random.Random) -> Damage:
    for inbox in run.server.all_inboxes():
        inbox.cut()
    return EVERYBODY, _nothing


def step_server_clock(run: Run, rng: random.Random) -> Damage:
    seconds = rng.uniform(-MOST_STEP_LEASES, MOST_STEP_LEASES) * run.lease_seconds
    run.server.ahead_seconds += seconds

    def step_back() -> None:
        run.server.ahead_seconds -= seconds

    return EVERYBODY, step_back


def fail_over(run: Run, _rng: random.Random) -> Damage:
    """Let a replica that lags behind take over. Its clock is right."""
    if run.server.is_down:
        return EVERYBODY, _nothing
    run.server.remember()
    return EVERYBODY, run.server.fail_over


def raise_floor(run: Run, rng: random.Random) -> Damage:
    """Nobody suffers, but the tokens of a lock are ahead of the clock afterwards.

    By less than a second they can't be distinguished from an estimate of the clock that is off.
    """
    run.raise_floor(rng.choice(["fair", "mixed"]), rng.choice([5, 100]))
    return [], _nothing


NEMESES: dict[str, SimulatedNemesis] = {
    nemesis.name: nemesis
    for nemesis in (
        SimulatedNemesis("kill-client", kill_client, (0, 0)),
        SimulatedNemesis("freeze-client", freeze_client, (0.2, 2.5)),
        SimulatedNemesis("freeze-server", freeze_server, (0.1, 1.5)),
        SimulatedNemesis("restart-server", restart_server, (0, 0.7)),
        SimulatedNemesis("wipe-server", wipe_server, (0, 0.5), breaks_exclusion=True),
        SimulatedNemesis(
            "step-server-clock",
            step_server_clock,
            (0.5, 3),
            breaks_exclusion=True,
            not_with=("wipe-server", "fail-over"),
        ),
        SimulatedNemesis(
            "fail-over", fail_over, (0, 0.5), breaks_exclusion=True, not_with=("restart-server",)
        ),
        SimulatedNemesis("raise-floor", raise_floor, (0, 0), not_with=("wipe-server",)),
        SimulatedNemesis("flush-scripts", flush_scripts, (0, 0)),
        SimulatedNemesis("kill-inboxes", kill_inboxes, (0, 0)),
        SimulatedNemesis("cut", cut, (0, 0)),
        SimulatedNemesis("delay", delay, (0.5, 3)),
        SimulatedNemesis("silence", silence, (0.2, 2.5)),
        SimulatedNemesis("lose-replies", lose_replies, (0.3, 1.5)),
        SimulatedNemesis("late-packets", late_packets, (0.3, 1.5)),
    )
}


def drawn(seed: int) -> tuple[str, ...]:
    """Return the nemeses that this seed draws: none, some, or all that go together."""
    rng = random.Random(f"{seed} nemeses")
    chosen: list[SimulatedNemesis] = []
    for name in rng.sample(list(NEMESES), rng.randint(0, len(NEMESES))):
        nemesis = NEMESES[name]
        if not any(
            nemesis.name in other.not_with or other.name in nemesis.not_with for other in chosen
        ):
            chosen.append(nemesis)
    return tuple(nemesis.name for nemesis in chosen)
