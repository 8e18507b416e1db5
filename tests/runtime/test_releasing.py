"""The release that is on the way of each lock, and its general twin."""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencedlock.core.answers import RELEASED
from fencedlock.core.claims import BoundLock, Claim, Hold
from fencedlock.core.lease import LeaseEvent, LeaseState
from fencedlock.core.roles import Owner
from fencedlock.runtime import releasing
from fencedlock.runtime.client_state import ClientState

STATES = (LeaseState.HELD, LeaseState.UNKNOWN)
"""A release of a lost or released hold raises before it comes to the twins."""

SIBLINGS = ("itself", "itself and others")


def a_hold(state: LeaseState, siblings: str) -> Hold:
    bound = SimpleNamespace(
        name="x",
        begin=lambda: SimpleNamespace(unanswered=False),
        release=lambda *_: RELEASED,
    )
    owner = cast("Owner", SimpleNamespace(id=1))
    claim = Claim("c/1/1", cast("BoundLock", bound), owner, 30.0, fair=True, patient=True)
    hold = Hold(claim, 7, float("inf"), abandoned=False, handle=weakref.ref(claim), siblings={})
    hold.state = state
    hold.siblings[1] = hold
    if siblings != "itself":
        hold.siblings[2] = cast("Hold", object())
    return hold


@pytest.mark.parametrize(
    ("state", "siblings", "depth"), list(itertools.product(STATES, SIBLINGS, (1, 2)))
)
def test_a_release_leaves_what_unwinding_leaves(
    state: LeaseState, siblings: str, depth: int
) -> None:
    nothing: Any = SimpleNamespace(
        request_seconds=lambda _: 1.0, heartbeat=SimpleNamespace(discard=lambda _: None)
    )
    released, unwound = a_hold(state, siblings), a_hold(state, siblings)
    released.depth = unwound.depth = depth
    releasing.release(cast("ClientState", nothing), released)
    releasing._unwind(unwound, LeaseEvent.RELEASED)
    assert (released.state, released.reason, released.depth, set(released.siblings)) == (
        unwound.state,
        unwound.reason,
        unwound.depth,
        set(unwound.siblings),
    )
