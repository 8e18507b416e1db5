"""Run many simulations, each decided by its seed, and judge what their contenders saw.

``python -m tests.simulation redis`` draws a first seed and says it. A run that breaks a rule is
made as small as can be, and the command is printed that repeats it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import plants
from tests.faults.history import Event
from tests.simulation.nemeses import drawn
from tests.simulation.run import Report, simulate, simulated
from tests.simulation.systems import SYSTEMS, System

LEASES = 12.5
"""The length of a run, in leases."""

MOST_SHRINKING_RUNS = 60
MOST_SHOWN = 3


def main() -> int:
    options = _options()
    system: System = SYSTEMS[options.system]()
    for name in options.nemeses or ():
        if name not in system.nemeses:
            print(f"there is no nemesis {name!r}: choose from {', '.join(system.nemeses)}")
            return 2
    seconds = options.seconds or LEASES * system.lease_seconds
    plants.plant(options.plant)
    first = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"from seed {first} on", flush=True)
    begun, holds, failed = time.monotonic(), 0, 0
    runs = 0
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)  # a run makes much garbage, of which little is in cycles
    with simulated(system):
        for seed in _seeds(first, options.runs, begun + 60 * options.minutes):
            nemeses = drawn(system.nemeses, seed) if options.nemeses is None else options.nemeses
            report = simulate(system, seed, nemeses, seconds)
            runs, holds = runs + 1, holds + report.grants
            if options.digests:
                print(seed, digest_of(report.events), flush=True)
            if options.history:
                options.history.write_text("".join(f"{json.dumps(e)}\n" for e in report.events))
            if report.violations:
                failed += 1
                _show(system, report, seconds, options)
                if options.first:
                    break
    took = time.monotonic() - begun
    print(f"{runs} runs, {holds} holds, {failed} runs with violations, {took:.0f} s")
    return int(failed > 0)


def digest_of(events: list[Event]) -> str:
    """Return a digest of a history. The same seed gives the same one."""
    return hashlib.sha256(json.dumps(events).encode()).hexdigest()[:16]


def _seeds(first: int, runs: int | None, until: float) -> Iterator[int]:
    seed = first
    while (runs is None or seed < first + runs) and time.monotonic() < until:
        yield seed
        seed += 1


def _show(system: System, report: Report, seconds: float, options: argparse.Namespace) -> None:
    print(report.line())
    for _, found in itertools.groupby(report.violations, lambda violation: violation.rule):
        for violation in itertools.islice(found, MOST_SHOWN):
            print(f"  {violation.rule}: {violation.text}")
    nemeses, seconds = smallest(system, report, seconds)
    command = [
        "python",
        "-m",
        "tests.simulation",
        options.system,
        "--seed",
        str(report.seed),
        "--runs",
        "1",
    ]
    command += ["--nemeses", ",".join(nemeses), "--seconds", f"{seconds:g}"]
    if options.plant:
        command += ["--plant", options.plant]
    print(f"  again, as small as it gets: {shlex.join(command)}", flush=True)


def smallest(system: System, report: Report, seconds: float) -> tuple[tuple[str, ...], float]:
    """Return fewer nemeses and a shorter time with which the same seed breaks the same rule."""
    rule, nemeses, runs = report.violations[0].rule, report.nemeses, 0

    def still(nemeses: tuple[str, ...], seconds: float) -> bool:
        nonlocal runs
        runs += 1
        if runs > MOST_SHRINKING_RUNS:
            return False
        again = simulate(system, report.seed, nemeses, seconds)
        return any(violation.rule == rule for violation in again.violations)

    while seconds > 1 and still(nemeses, seconds / 2):
        seconds /= 2
    for nemesis in report.nemeses:
        fewer = tuple(other for other in nemeses if other != nemesis)
        if still(fewer, seconds):
            nemeses = fewer
    return nemeses, seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("system", choices=SYSTEMS, help="the kind of server")
    parser.add_argument("--seed", type=int, help="the first seed; a random one by default")
    parser.add_argument("--runs", type=int, help="the number of seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no longer than that")
    parser.add_argument("--seconds", type=float, help="the length of a run")
    parser.add_argument(
        "--nemeses",
        type=lambda text: tuple(name for name in text.split(",") if name),
        metavar="A,B",
        help="in place of those that the seed draws",
    )
    parser.add_argument("--plant", default="", choices=["", *plants.PLANTS], help="a bug to find")
    parser.add_argument("--first", action="store_true", help="end with the first violation")
    parser.add_argument("--digests", action="store_true", help="print a digest of each history")
    parser.add_argument("--history", type=Path, help="a file for the last history")
    options = parser.parse_args()
    if options.runs is None and options.minutes == float("inf"):
        options.runs = 100
    return options


if __name__ == "__main__":
    sys.exit(main())
