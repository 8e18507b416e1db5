"""The ``fencedlock`` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from fencedlock import FencedLockError, __version__

COMMANDS = ("demo",)
"""The names of the subcommands.

Each is a module of this package with ``HELP``, ``DESCRIPTION``, ``add_arguments(parser)`` and
``main(options)``.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status.

    It is 0 if the job is done, 1 if the job found damage, 2 if it could not run, and 130 if it was
    interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="fencedlock", description="Reentrant, fair, fenced distributed locks."
    )
    parser.add_argument("--version", action="version", version=f"fencedlock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name in COMMANDS:
        command = import_module(f"{__name__}.{name}")
        its_parser = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        command.add_arguments(its_parser)
        its_parser.set_defaults(main=command.main)

    options = parser.parse_args(arguments)
    if sys.stdout is None:
        print("fencedlock: the standard output is closed", file=sys.stderr)
        return 2

    # These signals must not end the process at once, because its workers have to be ended first.
    before = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        return int(options.main(options))
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
