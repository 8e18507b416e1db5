"""The ``fencedlock`` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from fencedlock import FencedLockError, __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0 done, 1 the job found damage, 2 it could not run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="fencedlock", description="Reentrant, fair, fenced distributed locks.")
    parser.add_argument("--version", action="version", version=f"fencedlock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="let processes update one account while one holder is frozen and one is killed",
        description="Several processes update one account in a SQLite file under a FairLock, and check its fencing token in each "
        "transaction. On the way one holder is frozen past its lease and woken, and one is killed. "
        "Exit status 1 if an update is lost although tokens are checked.",
    )
    demo.add_argument("--url", default="embedded://", help="the lock server (default: %(default)s, a local redis-server started on demand)")
    demo.add_argument("--workers", type=_at_least(3), default=4, metavar="N", help="processes, at least 3 (default: %(default)s)")
    demo.add_argument("--updates", type=_at_least(10), default=100, metavar="N", help="updates by each, at least 10 (default: %(default)s)")
    demo.add_argument("--ttl", type=float, default=1.0, metavar="SECONDS", help="lease, at least 0.1 (default: %(default)s)")
    demo.add_argument("--unsafe", action="store_true", help="do not check tokens, and see what that costs")

    options = parser.parse_args(arguments)
    if sys.stdout is None:
        print("fencedlock: the standard output is closed", file=sys.stderr)
        return 2
    from fencedlock.cli.demo import run

    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}  # our workers end with us
    try:
        return run(options.url, workers=options.workers, updates=options.updates, ttl=options.ttl, check_tokens=not options.unsafe)
    except FencedLockError as error:
        print(f"fencedlock: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # nobody reads what we print any more
        sys.stdout = None
        print(f"fencedlock: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _at_least:  # noqa: N801 - argparse shows the name in its messages
    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, text: str) -> int:
        number = int(text)
        if number < self._least:
            raise argparse.ArgumentTypeError(f"must be at least {self._least}")
        return number
