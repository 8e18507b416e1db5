"""A claim on a lock that no server knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencedlock.core.claims import BoundLock, Claim
from fencedlock.core.roles import Owner

LEASE_SECONDS = 6.0


@pytest.fixture
def claim() -> Claim:
    bound = SimpleNamespace(name="x", begin=lambda: SimpleNamespace(unanswered=False))
    return Claim(
        "client/1/1",
        cast("BoundLock", bound),
        cast("Owner", cast("Any", None)),
        LEASE_SECONDS,
        fair=True,
        patient=True,
    )
