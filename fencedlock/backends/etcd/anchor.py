"""What a claim, or its hold, depends on at the server."""

from __future__ import annotations

from fencedlock.backends.etcd.leases import Lease


class Anchor:
    """The lease of a claim, and the keys that were made for it. Kept in :attr:`Claim.anchor` and :attr:`Hold.anchor`."""

    __slots__ = ("lease", "place", "revision", "since", "written")

    def __init__(self, lease: Lease) -> None:
        self.lease: Lease = lease
        self.place: int = 0
        """The ``create_revision`` of its place in the queue; 0 without one."""
        self.revision: int = 0
        """The ``create_revision`` of the holder's key: the token, unless it was raised; 0 until it is granted."""
        self.since: float = 0.0
        """When the key of the place, or of the hold, was made, at the latest."""
        self.written: int = 0
        """The last operation of the hold that the server has answered."""
