"""The time between two requests to a server that does not answer."""

from __future__ import annotations

import random

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 1.0
"""The longest pause, in seconds. A pause is random, from 0 to a bound. The bound doubles with each
failure, beginning with ``FIRST_PAUSE_SECONDS`` for no failure, up to this time.
"""


def pause_seconds(failures: int) -> float:
    """Return how many seconds to wait after this number of requests in a row without an answer."""
    # This is jitter and needs no secure random numbers.
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures))  # noqa: S311
