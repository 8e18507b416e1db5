"""The time between two requests to a server that does not answer."""

from __future__ import annotations

import random

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 1.0
"""A pause is random, from 0 to a bound. The bound doubles with each failure, from the first to the
longest.
"""


def pause_seconds(failures: int) -> float:
    """Return how long to wait before the next request, after this number of requests in a row without an answer."""
    # Jitter, not a secret
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures))  # noqa: S311
