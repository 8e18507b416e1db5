"""How long to wait between two questions to a server that is away."""

from __future__ import annotations

import random

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 1.0
"""Between two questions to a server that is away: full jitter below a bound that doubles from the first to the longest."""


def pause_seconds(failures: int) -> float:
    """How long to wait before the next question, after so many in a row that had no answer."""
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures))  # noqa: S311 - jitter, not a secret
