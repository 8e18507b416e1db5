"""What goes wrong with a simulated Redis server, and with its clients."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.simulation.nemeses import EVERYBODY, OF_CLIENTS, Damage, SimulatedNemesis, nothing

if TYPE_CHECKING:
    from tests.simulation.run import Run

MOST_STEP_LEASES = 2.0
"""The greatest step of the server's clock, in leases."""


def freeze_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, nothing
    run.server.freeze()
    return EVERYBODY, run.server.thaw


def restart_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, nothing
    run.server.kill()
    return EVERYBODY, run.server.start


def wipe_server(run: Run, _rng: random.Random) -> Damage:
    if run.server.is_down:
        return EVERYBODY, nothing
    run.server.kill()
    return EVERYBODY, lambda: run.server.start(with_data=False)


def flush_scripts(run: Run, _rng: random.Random) -> Damage:
    run.server.forget_scripts()
    return EVERYBODY, nothing


def kill_inboxes(run: Run, _rng: random.Random) -> Damage:
    for inbox in run.server.all_inboxes():
        inbox.cut()
    return EVERYBODY, nothing


def step_server_clock(run: Run, rng: random.Random) -> Damage:
    seconds = rng.uniform(-MOST_STEP_LEASES, MOST_STEP_LEASES) * run.lease_seconds
    run.server.ahead_seconds += seconds

    def step_back() -> None:
        run.server.ahead_seconds -= seconds

    return EVERYBODY, step_back


def fail_over(run: Run, _rng: random.Random) -> Damage:
    """Let a replica that lags behind take over. Its clock is right."""
    if run.server.is_down:
        return EVERYBODY, nothing
    run.server.replicate()
    return EVERYBODY, run.server.fail_over


NEMESES: dict[str, SimulatedNemesis] = {
    nemesis.name: nemesis
    for nemesis in (
        *OF_CLIENTS,
        SimulatedNemesis("freeze-server", freeze_server, (0.1, 1.5)),
        SimulatedNemesis("restart-server", restart_server, (0, 0.7)),
        SimulatedNemesis(
            "wipe-server", wipe_server, (0, 0.5), breaks_exclusion=True, not_with=("raise-floor",)
        ),
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
        SimulatedNemesis("flush-scripts", flush_scripts, (0, 0)),
        SimulatedNemesis("kill-inboxes", kill_inboxes, (0, 0)),
    )
}
