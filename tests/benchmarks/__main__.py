"""``python -m tests.benchmarks`` runs all benchmarks. It prints tables, and makes pictures for the
documentation.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks import handoff, holds, server_side, start, tasks, uncontended, waiters
from tests.benchmarks.contestants import (
    ETCD_OURS,
    ETCD_PEER,
    ETCD_WIRE,
    FAIR,
    HOST,
    IMPATIENT,
    LOCAL,
    OURS,
    PEER,
    PEERS,
    PLAIN,
    PROCESS,
    REDIS_PY,
    WIRE,
)
from tests.benchmarks.tables import Table
from tests.etcd_servers import EtcdServer, any_etcd, find_etcd
from tests.servers import RedisServer, any_redis_server, find_redis_server

_PACKAGES = {
    "python-redis-lock": "python-redis-lock",
    "redis-py Lock": "redis",
    "pottery Redlock": "pottery",
    "py-redis-semaphore": "py-redis-semaphore",
    "redis-fifo-lock": "redis-fifo-lock",
    "fencekit": "fencekit",
}
"""Maps each peer to the package that it comes from."""


def describe_run() -> str:
    """Return the command that repeats this run, and the versions that it was made with."""
    programs = [find_redis_server(any_redis_server()), find_etcd(any_etcd())]
    servers = [
        subprocess.run(
            [each, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
        for each in programs
    ]
    packages = [
        f"{name} {version(name)}"
        for name in ("hiredis", *_PACKAGES.values(), "grpcio")
        if found(name)
    ]
    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    python = f"Python {platform.python_version()}"
    return (
        f"``{command}``\n\n"
        f"{'; '.join([python, f'{os.cpu_count()} CPUs', platform.system(), *servers, *packages])}\n"
    )


def found(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


class Report:
    """Prints each table. If there is a folder, also writes the table and its picture there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.txt").write_text(describe_run())

    def add(self, table: Table) -> None:
        table.show()
        if self.folder is not None:
            table.save(self.folder)

    def rates(self, name: str, title: str, measured: handoff.Measured) -> None:
        """Make a picture of hand-offs: their rate, and the longest wait of a contender."""
        if self.folder is not None:
            from tests.benchmarks import plots

            rates = {label: [run.rate for run in runs] for label, runs in measured.runs.items()}
            waits = {
                label: [1000 * run.longest_wait for run in runs]
                for label, runs in measured.runs.items()
            }
            plots.bars(
                self.folder / f"{name}-rate.svg",
                f"{title}: acquisitions/s",
                "acquisitions/s",
                rates,
            )
            plots.bars(
                self.folder / f"{name}-wait.svg",
                f"{title}: longest wait, ms",
                "longest wait, ms",
                waits,
            )

    def times(self, name: str, title: str, seconds: dict[str, list[float]]) -> None:
        if self.folder is not None:
            from tests.benchmarks import plots

            plots.bars(
                self.folder / f"{name}.svg",
                title,
                "µs",
                {label: [1e6 * each for each in values] for label, values in seconds.items()},
            )

    def growth(self, table: Table, beside: str, others: list[int]) -> None:
        self.add(table)
        if self.folder is not None:
            from tests.benchmarks import plots

            rows = {row[0]: [float(cell) for cell in row[1:]] for row in table.rows}
            plots.lines(
                self.folder / f"{table.name}.svg",
                "at the server, for each operation",
                f"{beside} besides",
                "µs",
                others,
                rows,
            )


def with_redis(
    part: Callable[[RedisServer, Report, int, float], None],
) -> Callable[[Path, Report, int, float], None]:
    def run(folder: Path, report: Report, rounds: int, seconds: float) -> None:
        server = RedisServer(folder, find_redis_server(any_redis_server())).start()
        try:
            part(server, report, rounds, seconds)
        finally:
            server.kill()

    return run


def on_redis_uncontended(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    times = uncontended.measure(server, uncontended.free, [*OURS, *peers(), WIRE, *LOCAL], rounds)
    report.add(uncontended.table("uncontended", "acquire and release", times, [REDIS_PY, WIRE]))
    report.times(
        "uncontended",
        "acquire and release, nobody else around",
        {label: each for label, each in times.items() if label not in LOCAL},
    )
    times = uncontended.measure(server, uncontended.nested, [FAIR, PLAIN, PROCESS, HOST], rounds)
    report.add(uncontended.table("nested", "acquire and release while holding", times, [PLAIN]))
    times = uncontended.measure(server, uncontended.held, [FAIR, PLAIN, PEER, REDIS_PY], rounds)
    report.add(uncontended.table("held", "one try at a held lock", times, [REDIS_PY]))


def on_redis_handoff(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    few = [FAIR, PLAIN, PEER, REDIS_PY]
    for processes, labels, section_seconds in (
        (2, [*OURS, *peers()], 0.0),
        (8, [*OURS, *peers()], 0.0),
        (32, few, 0.0),
        (8, few, 0.001),
        (32, few, 0.001),
    ):
        measured = handoff.measure(
            server.port,
            labels,
            processes,
            rounds,
            seconds,
            section_seconds=section_seconds,
            with_messages=not section_seconds,
        )
        section = f"{1000 * section_seconds:.0f} ms" if section_seconds else "empty"
        title = f"{processes} processes, {section} section"
        name = f"handoff-{processes}-{section.replace(' ', '')}"
        report.add(handoff.table(name, title, measured, PEER))
        if len(labels) > len(few):
            report.rates(name, title, measured)


def on_redis_threads(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    measured = handoff.measure_threads(
        server.port, [FAIR, PLAIN, IMPATIENT, PEER], 64, rounds, seconds
    )
    report.add(
        handoff.table("threads", "64 threads of one process", measured, IMPATIENT, with_stall=True)
    )


def on_redis_holds(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    assert server.process is not None
    report.add(holds.measure(server.port, server.process.pid, [10, 1_000, 10_000, 100_000], 20))


def on_redis_waiters(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    assert server.process is not None
    report.add(waiters.measure(server.port, server.process.pid, [10, 1_000, 10_000], 5))


def on_redis_server(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    report.add(server_side.table(server.port, 100 * rounds))
    for beside, others in (
        ("locks", [0, 100, 10_000, 100_000]),
        ("waiters", [0, 100, 1_000, 10_000]),
    ):
        report.growth(server_side.growth(server.port, 100 * rounds, beside, others), beside, others)


def on_redis_start(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    report.add(start.measure(server.port, 2 * rounds))


def on_redis_tasks(server: RedisServer, report: Report, rounds: int, seconds: float) -> None:
    fifo = [tasks.FIFO] if found(_PACKAGES[tasks.FIFO]) else []
    theirs = [tasks.REDIS_ASYNCIO, *fifo]
    free = [tasks.FAIR, tasks.PLAIN, tasks.HANDLE, *theirs, tasks.WIRE]
    times = tasks.measure_free(server, free, rounds)
    bases = [tasks.REDIS_ASYNCIO, tasks.WIRE]
    report.add(
        uncontended.table("tasks-uncontended", "acquire and release, by a task", times, bases)
    )
    labels = [tasks.FAIR, tasks.PLAIN, tasks.BLOCKING, *theirs]
    measured = tasks.measure_handoff(server.socket, labels, rounds, seconds)
    title = "2 processes with a task each, empty section"
    report.add(tasks.table("tasks-handoff", title, measured, [tasks.BLOCKING, *fifo]))
    labels = [tasks.FAIR, tasks.PLAIN, tasks.FEW, tasks.MANY, *fifo]
    measured = tasks.measure_crowd(server.socket, labels, rounds, seconds, one_lock=False)
    title = "1,000 tasks of one loop, each with a lock of its own"
    bases = [tasks.FEW, tasks.MANY]
    report.add(tasks.table("tasks-own", title, measured, bases, with_waits=False))
    labels = [tasks.FAIR, *fifo]
    measured = tasks.measure_crowd(server.socket, labels, rounds, seconds, one_lock=True)
    title = "1,000 tasks of one loop wait for one lock"
    report.add(tasks.table("tasks-one", title, measured, fifo or [tasks.FAIR]))


def on_etcd(folder: Path, report: Report, rounds: int, seconds: float) -> None:
    """Run the benchmarks of etcd. It keeps its data in memory, so that the disk does not count."""
    server = EtcdServer(folder, any_etcd()).start()
    try:
        times = uncontended.measure(
            server, uncontended.free, [*ETCD_OURS, ETCD_PEER, ETCD_WIRE], rounds
        )
        report.add(
            uncontended.table("etcd-uncontended", "acquire and release, etcd", times, [ETCD_WIRE])
        )
        for processes in (2, 4, 8):
            measured = handoff.measure(
                server.port,
                [*ETCD_OURS, ETCD_PEER],
                processes,
                rounds,
                seconds,
                with_messages=False,
            )
            report.add(
                handoff.table(
                    f"etcd-handoff-{processes}",
                    f"{processes} processes, empty section, etcd",
                    measured,
                    ETCD_PEER,
                )
            )
    finally:
        server.kill()


def peers() -> list[str]:
    """Return the names of the peers that are installed."""
    missing = [label for label, distribution in _PACKAGES.items() if not found(distribution)]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}\n")
    return [label for label in PEERS if label not in missing]


PARTS: dict[str, Callable[[Path, Report, int, float], None]] = {
    "uncontended": with_redis(on_redis_uncontended),
    "handoff": with_redis(on_redis_handoff),
    "threads": with_redis(on_redis_threads),
    "holds": with_redis(on_redis_holds),
    "waiters": with_redis(on_redis_waiters),
    "server": with_redis(on_redis_server),
    "start": with_redis(on_redis_start),
    "tasks": with_redis(on_redis_tasks),
    "etcd": on_etcd,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Compare speed with peers and the bare wire."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="interleaved rounds; medians are told, with their spread (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.5,
        help="length of one contended run (default: %(default)s)",
    )
    parser.add_argument(
        "--report", type=Path, help="a folder for the tables (CSV) and pictures (SVG)"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown or options.rounds < 1 or options.seconds <= 0:
        parser.error(
            f"no such part: {', '.join(sorted(unknown))}"
            if unknown
            else "there must be a round, and it must take a time"
        )
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    report = Report(options.report)
    for name, part in PARTS.items():
        if not options.parts or name in options.parts:
            with tempfile.TemporaryDirectory(prefix="flb", dir=in_memory) as folder:
                part(Path(folder), report, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
