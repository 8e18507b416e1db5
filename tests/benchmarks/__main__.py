"""``python -m tests.benchmarks``: everything in one run, as tables."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks import handoff, uncontended
from tests.servers import RedisServer, any_redis_server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Compare speed with peers and the bare wire.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one contended run (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flb") as folder:
        server = RedisServer(Path(folder), any_redis_server()).start()
        try:
            show(uncontended.table(uncontended.measure(server, 10 * options.rounds)))
            messages = statistics.median(handoff.ping_pong(server.port, options.seconds) for _ in range(options.rounds))
            print(f"bare pub/sub ping-pong: {messages:.0f} messages/s\n")
            for processes in (2, 8):
                show(handoff.table(processes, handoff.measure(server, processes, options.rounds, options.seconds), messages))
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
