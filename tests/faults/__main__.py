"""Let nemeses loose on real servers, each alone and all together, and judge what the contenders
wrote down.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.databases import PostgreSQLServer
from tests.faults.nemeses import Nemesis
from tests.faults.plants import PLANTS
from tests.faults.report import table
from tests.faults.run import Run, prepared_stores, why_not
from tests.faults.targets import TARGETS
from tests.faults.targets.base import Target

SHARE_ALONE = 0.4
TOGETHER_SECONDS = 60.0


def main() -> int:
    """Do the runs. Return the exit status, which is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "target",
        choices=[*TARGETS, "table"],
        help="lock servers to run on; or print the table of all reports",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="total time, without the starts and ends of runs (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of all random choices (default: %(default)s)"
    )
    parser.add_argument(
        "--nemeses",
        default="",
        metavar="A,B",
        help="make one run with these together, instead of each alone and all together",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="append the result of each run as a line of JSON",
    )
    parser.add_argument(
        "--keep", action="store_true", help="also keep the folders of runs without violations"
    )
    parser.add_argument(
        "--plant", choices=PLANTS, default="", help="plant this bug in the contenders' library"
    )
    options = parser.parse_args()
    if options.target == "table":
        print(table([json.loads(line) for line in options.report.read_text().splitlines()]))
        return 0
    broken = False
    with tempfile.TemporaryDirectory(prefix="flpg") as database_folder:
        database = PostgreSQLServer(Path(database_folder))
        try:
            for target, nemeses, seconds, seed in _plan(options):
                stores = prepared_stores(target.folder, database.new_database())
                report = Run(
                    target, nemeses, seed, target.folder, stores, plant=options.plant
                ).last(seconds)
                print(report.line(), flush=True)
                for violation in report.violations:
                    broken = True
                    print(f"  {violation.rule}: {violation.text}\n  in {report.folder}", flush=True)
                if not report.violations and not options.keep:
                    shutil.rmtree(target.folder)
                if options.report is not None:
                    with options.report.open("a") as file:
                        file.write(json.dumps(dataclasses.asdict(report)) + "\n")
        finally:
            database.stop()
    return 1 if broken else 0


def _plan(options: argparse.Namespace) -> Iterator[tuple[Target, tuple[Nemesis, ...], float, int]]:
    def target() -> Target:
        return TARGETS[options.target](Path(tempfile.mkdtemp(prefix="flrun")))

    first = target()
    possible = []
    for nemesis in first.nemeses:
        reason = why_not(first, nemesis.name)
        if reason is None:
            possible.append(nemesis)
        else:
            print(f"without {nemesis.name}: {reason}")
    if options.nemeses:
        wanted = options.nemeses.split(",")
        yield (
            first,
            tuple(nemesis for nemesis in possible if nemesis.name in wanted),
            options.seconds,
            options.seed,
        )
        return
    shutil.rmtree(first.folder)
    for nemesis in possible:
        yield target(), (nemesis,), SHARE_ALONE * options.seconds / len(possible), options.seed
    rest = (1 - SHARE_ALONE) * options.seconds
    rounds = max(1, round(rest / TOGETHER_SECONDS))
    for number in range(rounds):
        yield (
            target(),
            together(possible, random.Random(f"{options.seed} {number}")),
            rest / rounds,
            options.seed + number,
        )


def together(nemeses: list[Nemesis], rng: random.Random) -> tuple[Nemesis, ...]:
    """Return all nemeses, without those that the documentation does not promise to survive together
    with another one.
    """
    chosen: list[Nemesis] = []
    for nemesis in rng.sample(nemeses, len(nemeses)):
        if not any(nemesis.name in other.not_with for other in chosen):
            chosen.append(nemesis)
    return tuple(chosen)


if __name__ == "__main__":
    begun = time.monotonic()
    status = main()
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    sys.exit(status)
