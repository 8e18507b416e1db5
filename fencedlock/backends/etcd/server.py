"""One etcd cluster as one client sees it: the state that all locks of the client share."""

from __future__ import annotations

from fencedlock.backends.etcd.connections import Connections
from fencedlock.backends.etcd.inbox import Inbox
from fencedlock.backends.etcd.leases import Leases
from fencedlock.backends.etcd.ticket import Places
from fencedlock.core.names import checked_namespace
from fencedlock.errors import BackendMisconfiguredError


class EtcdCluster:
    """The connections, leases, places in queues, inbox and highest known revision of a client."""

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
        """The highest revision of the cluster that this client has seen; 0 before the first."""

    def saw_revision(self, revision: int, at_least: int) -> None:
        """Record the revision at which the cluster answered a transaction.

        ``at_least`` is the highest revision that was known before the transaction was sent. Raises
        BackendMisconfiguredError if ``revision`` is lower, because tokens would go back too.
        """
        if revision < at_least:
            raise BackendMisconfiguredError(
                f"etcd's revision has gone back from {at_least} to {revision}, and fencing tokens "
                "with it: it was restored from a backup, or replaced. Restore it with "
                "--bump-revision, or raise the floor of each lock that has a fence; then connect "
                "anew"
            )
        self.highest_revision = max(self.highest_revision, revision)
