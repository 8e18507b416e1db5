"""``python -m tests.benchmarks``: everything in one run, as tables."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks import handoff, uncontended
from tests.benchmarks.contestants import ETCD_LOCKS, ETCD_PEER, ETCD_WIRE, LOCKS, PEER, WIRE
from tests.etcd_servers import EtcdServer, any_etcd
from tests.servers import RedisServer, any_redis_server, find_redis_server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Compare speed with peers and the bare wire.")
    parser.add_argument("servers", nargs="*", choices=["redis", "etcd", []], help="which lock servers (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one contended run (default: %(default)s)")
    options = parser.parse_args()
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="flb", dir=in_memory) as folder:
        if not options.servers or "redis" in options.servers:
            on_redis(Path(folder), options.rounds, options.seconds)
        if not options.servers or "etcd" in options.servers:
            on_etcd(Path(folder), options.rounds, options.seconds)


def on_redis(folder: Path, rounds: int, seconds: float) -> None:
    server = RedisServer(folder, find_redis_server(any_redis_server())).start()
    try:
        show(uncontended.table(uncontended.measure(server, [*LOCKS, WIRE], 10 * rounds), ["redis-py Lock", WIRE]))
        messages = statistics.median(handoff.ping_pong(server.port, seconds) for _ in range(rounds))
        print(f"bare pub/sub ping-pong: {messages:.0f} messages/s\n")
        for processes in (2, 8):
            show(handoff.table(processes, handoff.measure(server.port, LOCKS, processes, rounds, seconds), PEER, messages))
    finally:
        server.kill()


def on_etcd(folder: Path, rounds: int, seconds: float) -> None:
    """With its data in memory, so that the disk's share is left out."""
    server = EtcdServer(folder, any_etcd()).start()
    try:
        show(uncontended.table(uncontended.measure(server, [*ETCD_LOCKS, ETCD_WIRE], 10 * rounds), [ETCD_WIRE]))
        for processes in (2, 4, 8):
            show(handoff.table(processes, handoff.measure(server.port, ETCD_LOCKS, processes, rounds, seconds), ETCD_PEER))
    finally:
        server.kill()


def show(rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print(
            "| "
            + " | ".join(
                cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            + " |"
        )
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|")
    print(flush=True)


if __name__ == "__main__":
    main()
