"""EtcdFence: it lets a transaction succeed only while the hold of a token still exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fencedlock.client import Client
from fencedlock.errors import BackendError, ConfigurationError, StaleTokenError
from fencedlock.fencing.base import checked_resource
from fencedlock.token import FencingToken

if TYPE_CHECKING:
    from fencedlock.backends.etcd.lock import EtcdLock


class EtcdFence:
    """A fence in the etcd that keeps the locks; it refuses writes unless the token is still held.

    This is stricter than the other fences, which let the last holder write until the next one has
    been there: here writes are refused as soon as the hold has ended. It needs no table, because
    your transaction compares the lock's own key. The idea is from ``Mutex.IsOwner()`` of etcd's Go
    client.

    ``client`` is the :class:`fencedlock.Client` of the locks, connected to ``etcd://``, or an
    ``etcd3.client()``. ``namespace`` is that of the locks. It is only used with an
    ``etcd3.client()``. ``timeout`` is the number of seconds that one request may take, at most an
    hour. Raises ConfigurationError if ``client`` or ``timeout`` is anything else.
    """

    def __init__(self, client: Any, *, namespace: str = "fencedlock", timeout: float = 5.0) -> None:
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, int | float)
            or not 0 < timeout <= 3600
        ):
            raise ConfigurationError(
                f"timeout must be a number of seconds above 0, at most an hour, not {timeout!r}"
            )
        self._timeout = float(timeout)
        from fencedlock.backends.etcd.backend import EtcdBackend
        from fencedlock.backends.etcd.ready import ReadyConnections, is_ready_client

        if is_ready_client(client):
            backend = EtcdBackend(ReadyConnections(client, os.getpid()), namespace, self._timeout)
            self._backend: Callable[[], Any] = lambda: backend
        elif isinstance(client, Client) and isinstance(client._table.backend, EtcdBackend):
            table = client._table
            self._backend = lambda: table.backend  # read each time: a forked child has another one
        else:
            raise ConfigurationError(
                "an EtcdFence needs the client of the locks, as fencedlock.connect('etcd://host') "
                f"makes it, or an etcd3.client(), not {client!r:.80}"
            )

    def compare(self, token: FencingToken) -> Any:
        """Return the compare for ``client.transaction(compare=[...])`` of the package etcd3.

        Raises TypeError if ``token`` is not a FencingToken, and BackendError.
        """
        from etcd3 import transactions  # type: ignore[import-not-found,unused-ignore]

        key, revision = self._holder_of(token)
        return transactions.Create(key) == revision

    def transaction(
        self,
        token: FencingToken,
        *,
        put: Mapping[str | bytes, str | bytes] | None = None,
        delete: Iterable[str | bytes] = (),
    ) -> int:
        """Put and delete keys, all or none of them, if the lock is held with this token.

        Returns the revision of etcd that the change has made. ``put`` maps keys to values.
        ``delete`` names keys. Text is encoded as UTF-8.

        Raises StaleTokenError, and changes nothing, if the lock is not held with this token. Raises
        BackendUnavailableError if the outcome is unknown. A second try with the same token does no
        harm then. Raises BackendError if etcd refuses the transaction, ConfigurationError if there
        is nothing to put or delete, and TypeError for wrong types.
        """
        from fencedlock.backends.etcd.connections import TXN
        from fencedlock.backends.etcd.messages import CREATE, EQUAL, messages

        known = messages()
        operations = [
            known.RequestOp(request_put=known.PutRequest(key=_bytes(key), value=_bytes(value)))
            for key, value in (put or {}).items()
        ]
        operations += [
            known.RequestOp(request_delete_range=known.DeleteRangeRequest(key=_bytes(key)))
            for key in delete
        ]
        if not operations:
            raise ConfigurationError(
                "a transaction without put= or delete= protects nothing: name what it writes"
            )
        holder, revision = self._holder_of(token)
        request = known.TxnRequest(
            compare=[
                known.Compare(result=EQUAL, target=CREATE, key=holder, create_revision=revision)
            ],
            success=operations,
        )
        answer = self._bind(token.lock).cluster.connections.call(TXN, request, self._timeout)
        if not answer.succeeded:
            raise self.stale(token)
        return int(answer.header.revision)

    def stale(self, token: FencingToken) -> StaleTokenError:
        """Return the error to raise when a transaction with :meth:`compare` did not succeed.

        It asks etcd, and tells with which token the lock is held now.
        """
        now = None
        try:
            now = self._bind(token.lock).inspect(self._timeout).token
        except BackendError:
            pass
        since = "nobody holds it now" if now is None else f"token {now} holds it now"
        return StaleTokenError(
            f"token {token} of lock {token.lock!r} is stale: that hold has ended, and {since}. "
            "Nothing was written; do not retry with this token: acquire the lock again",
            presented=int(token),
            stored=now,
            lock=token.lock,
            token=token,
        )

    def _bind(self, name: str) -> EtcdLock:
        bound: EtcdLock = self._backend().bind_lock(name)
        return bound

    def _holder_of(self, token: FencingToken) -> tuple[bytes, int]:
        """Return the key that the hold of this token has made, and its ``create_revision``."""
        checked_resource(token, None)
        bound = self._bind(token.lock)
        return bound.keys.holder, bound.revision_of(int(token), self._timeout)


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(
        f"etcd's keys and values are str or bytes, not {type(text).__name__}: {text!r:.80}"
    )
