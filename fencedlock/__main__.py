"""Run the ``fencedlock`` command by ``python -m fencedlock``."""

import sys

from fencedlock.cli import main

if __name__ == "__main__":
    sys.exit(main())
