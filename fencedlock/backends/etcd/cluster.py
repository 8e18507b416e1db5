"""One etcd cluster as one client sees it: what all its locks share there."""

from __future__ import annotations

from fencedlock.backends.etcd.connections import Connections
from fencedlock.backends.etcd.inbox import Inbox
from fencedlock.backends.etcd.leases import Leases
from fencedlock.backends.etcd.ticket import Places
from fencedlock.core.names import checked_namespace
from fencedlock.errors import BackendMisconfiguredError


class EtcdCluster:
    """Connections, leases, places in queues, the inbox, and the highest revision that was seen."""

    def __init__(
        self, connections: Connections, namespace: str, request_timeout_seconds: float
    ) -> None:
        self.request_timeout_seconds: float = request_timeout_seconds
        self._namespace = checked_namespace(namespace)
        self.connections: Connections = connections
        self.leases: Leases = Leases(connections, namespace)
        self.places: Places = Places()
        self.inbox: Inbox = Inbox(connections, request_timeout_seconds)
        self.highest_revision: int = 0
        """The cluster was seen at this revision."""

    def saw_revision(self, revision: int, at_least: int) -> None:
        """The cluster answered a transaction at this revision, and had been seen at ``at_least`` before it was asked.

        Raises BackendMisconfiguredError if it has gone back, for tokens would too.
        """
        if revision < at_least:
            raise BackendMisconfiguredError(
                f"etcd's revision has gone back from {at_least} to {revision}, and fencing tokens "
                "with it: it was restored from a backup, or replaced. Restore it with "
                "--bump-revision, or raise the floor of each lock that has a fence; then connect "
                "anew"
            )
        self.highest_revision = max(self.highest_revision, revision)
