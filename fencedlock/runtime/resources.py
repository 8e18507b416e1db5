"""The named locks of one client, and the settings of their handles."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from fencedlock.core.claims import BoundLock, Hold
from fencedlock.core.lease import LeaseState
from fencedlock.runtime.client_state import ClientState
from fencedlock.runtime.process import own


class Resource:
    """One named lock of a client. All handles with its name share it and keep it alive."""

    def __init__(self, state: ClientState, name: str) -> None:
        self.state: ClientState = state
        self.name: str = name
        self.bound: BoundLock = state.backend.bind_lock(name)
        self.holds: dict[int, Hold] = {}
        """Maps the id of an owner to its hold.

        There is more than one hold only while a lost hold is not unwound yet.
        """

    def __del__(self) -> None:
        held = [
            hold
            for hold in getattr(self, "holds", {}).values()
            if hold.state in (LeaseState.HELD, LeaseState.UNKNOWN)
        ]
        if held and own[0]:
            self.state.heartbeat.collect(held)
            warnings.warn(
                f"the last handle of held lock {self.name!r} was collected; it is released",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class HandleSettings:
    """The settings of a handle, which apply to each acquisition.

    They are in an object of their own because handles have several classes, and Python is slower if
    the same code meets objects of several classes in turn.
    """

    __slots__ = (
        "fair",
        "handle",
        "latest",
        "lease_seconds",
        "max_hold_seconds",
        "request_seconds",
        "resource",
        "state",
    )

    def __init__(
        self,
        handle: object,
        resource: Resource,
        lease_seconds: float,
        max_hold_seconds: float | None,
        fair: bool,
    ) -> None:
        self.handle: weakref.ref[Any] = weakref.ref(handle)
        self.state: ClientState = resource.state
        self.resource: Resource = resource
        self.lease_seconds: float = lease_seconds
        self.max_hold_seconds: float | None = max_hold_seconds
        self.request_seconds: float = resource.state.request_seconds(lease_seconds)
        self.fair: bool = fair
        self.latest: Hold | None = None
        """The latest hold that was acquired by this handle."""
