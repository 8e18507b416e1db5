"""Any sequence of operations of several owners has the same effect on a real lock as on a model.

Leases end when the test wants it, by the server's own means, as if their time had run out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fencedlock
from fencedlock import (
    AcquireCancelledError,
    ConfigurationError,
    LockLostError,
    NotOwnedError,
)
from fencedlock.backends.etcd import connections as calls
from fencedlock.backends.etcd.keys import locks_prefix
from fencedlock.backends.etcd.messages import messages
from tests.conftest import eventually
from tests.etcd_servers import EtcdServer
from tests.servers import LockServer, RedisServer

OWNERS = 3
TTL_SECONDS = 60
PATIENCE_SECONDS = 20
_names = itertools.count()


@dataclass
class ModelHold:
    """A hold as its owner believes it to be."""

    depth: int = 1
    taken: bool = False
    """True if the server has ended the hold."""


@dataclass
class Model:
    """A model of a lock, its queue and its tokens, without a network or a clock."""

    holder: int | None = None
    holds: dict[int, ModelHold] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    abandoned: bool = False
    """True if the last hold ended without a release."""
    detached: bool = False
    """True if nobody holds the lock for which the holder has a secret."""

    def ask(self, owner: int, *, wait: bool) -> list[int]:
        """Let an owner without a hold ask for the lock. Return the owners that are granted it."""
        if self.holder is None and not self.queue:
            return [self._grant(owner)]
        if wait:
            self.queue.append(owner)
        return self.hand_over()

    def hand_over(self) -> list[int]:
        """Grant the lock to the first owner in the queue, if it is free. Return the new holders."""
        return [self._grant(self.queue.pop(0))] if self.holder is None and self.queue else []

    def _grant(self, owner: int) -> int:
        self.holder, self.holds[owner] = owner, ModelHold()
        return owner

    def end(self, owner: int) -> list[int]:
        """End the hold by its last release. Return the owners that are granted the lock."""
        hold = self.holds.pop(owner)
        if not hold.taken:
            self.holder, self.abandoned = None, False
        return self.hand_over()

    def take(self) -> None:
        """Let the server end the hold without a release."""
        assert self.holder is not None
        if not self.detached:
            self.holds[self.holder].taken = True
        self.holder, self.abandoned, self.detached = None, True, False

    def detach(self, owner: int) -> None:
        """End the hold for its owner, but not on the server."""
        del self.holds[owner]
        self.detached = True

    def attach(self, owner: int) -> None:
        """Let an owner without a hold have the detached one."""
        self.holder, self.holds[owner], self.detached = owner, ModelHold(), False


class LockMachine(RuleBasedStateMachine):
    """Several owners, each a thread with a client of its own, and an operator."""

    server: Any
    clients: tuple[fencedlock.Client, ...]
    threads: tuple[ThreadPoolExecutor, ...]

    def __init__(self) -> None:
        super().__init__()
        self.name = f"model/{next(_names)}"
        self.model = Model()
        self.locks = [client.FairLock(self.name) for client in self.clients[:OWNERS]]
        self.rushing = [client.RLock(self.name) for client in self.clients[:OWNERS]]
        self.operator = self.clients[-1]
        self.waiting: dict[int, tuple[Future[bool], fencedlock.Cancellation]] = {}
        self.last_token = 0
        self.secrets: list[str] = []
        """The secrets of all holds that were detached. The last one is that of the latest."""
        self.was_abandoned = False
        """Whether the hold before the present one, or before the detached one, was abandoned."""

    def at(self, owner: int, action: Callable[[], Any]) -> Any:
        """Do something in the owner's thread, and return the result."""
        return self.threads[owner].submit(action).result(PATIENCE_SECONDS)

    def expect(
        self,
        owner: int,
        error: type[Exception] | tuple[type[Exception], ...],
        action: Callable[[], Any],
    ) -> None:
        with pytest.raises(error):
            self.at(owner, action)

    def granted(self, owners: list[int]) -> None:
        """Check that these owners hold the lock now, each with a new token, and know how the hold
        before ended.
        """
        for owner in owners:
            if owner in self.waiting:
                assert self.waiting.pop(owner)[0].result(PATIENCE_SECONDS) is True
            token, abandoned = self.at(owner, partial(verdict, self.locks[owner]))
            assert token > self.last_token
            assert abandoned is self.model.abandoned
            self.last_token, self.was_abandoned = token, abandoned

    @rule(owner=st.integers(0, OWNERS - 1), rush=st.booleans())
    def tries(self, owner: int, rush: bool) -> None:
        assume(owner not in self.waiting)
        lock = (self.rushing if rush else self.locks)[owner]
        hold = self.model.holds.get(owner)
        if hold is None:
            granted = self.model.ask(owner, wait=False)
            assert self.at(owner, lambda: lock.acquire(False)) is (owner in granted)
            self.granted(granted)
        elif hold.taken:
            self.expect(owner, LockLostError, lambda: lock.acquire(False))
        else:
            hold.depth += 1
            assert self.at(owner, lambda: lock.acquire(False)) is True
            assert self.at(owner, lambda: int(lock.token)) == self.last_token

    @rule(owner=st.integers(0, OWNERS - 1))
    def waits(self, owner: int) -> None:
        assume(owner not in self.waiting and owner not in self.model.holds)
        granted = self.model.ask(owner, wait=True)
        cancellation = fencedlock.Cancellation()
        lock = self.locks[owner]
        self.waiting[owner] = (
            self.threads[owner].submit(lambda: lock.acquire(cancel=cancellation)),
            cancellation,
        )
        self.granted(granted)
        if owner in self.waiting:
            eventually(
                lambda: len(self.operator.inspect(self.name).waiters) == len(self.model.queue)
            )

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.waiting)))
        future, cancellation = self.waiting.pop(owner)
        self.model.queue.remove(owner)
        cancellation.cancel()
        with pytest.raises(AcquireCancelledError):
            future.result(PATIENCE_SECONDS)

    @rule(owner=st.integers(0, OWNERS - 1))
    def releases(self, owner: int) -> None:
        assume(owner not in self.waiting)
        lock, hold = self.locks[owner], self.model.holds.get(owner)
        if hold is None:
            self.expect(owner, NotOwnedError, lock.release)
            return
        if hold.taken:
            self.expect(owner, LockLostError, lock.release)
        else:
            self.at(owner, lock.release)
        if hold.depth > 1:
            hold.depth -= 1
        else:
            self.granted(self.model.end(owner))

    @rule(owner=st.integers(0, OWNERS - 1))
    def renews(self, owner: int) -> None:
        assume(owner not in self.waiting)
        lock, hold = self.locks[owner], self.model.holds.get(owner)
        if hold is None or hold.taken:
            self.expect(owner, NotOwnedError if hold is None else LockLostError, lock.renew)
        else:
            self.at(owner, lock.renew)

    @rule(owner=st.integers(0, OWNERS - 1))
    def detaches(self, owner: int) -> None:
        assume(owner not in self.waiting)
        lock, hold = self.locks[owner], self.model.holds.get(owner)
        if hold is None:
            self.expect(owner, NotOwnedError, lock.detach)
        elif hold.taken and hold.depth == 1:
            self.expect(owner, LockLostError, lock.detach)
        elif hold.depth > 1:
            self.expect(owner, ConfigurationError, lock.detach)
        else:
            self.secrets.append(self.at(owner, lock.detach))
            self.model.detach(owner)

    @precondition(lambda self: self.secrets)
    @rule(owner=st.integers(0, OWNERS - 1), data=st.data())
    def attaches(self, owner: int, data: st.DataObject) -> None:
        assume(owner not in self.waiting)
        number = data.draw(st.integers(1, min(3, len(self.secrets))))
        lock, hold = self.locks[owner], self.model.holds.get(owner)
        attach = partial(lock.attach, self.secrets[-number])
        if hold is not None:
            # An owner that does not know of its loss yet believes that it holds the lock.
            known = (LockLostError, NotOwnedError) if hold.taken else (NotOwnedError,)
            self.expect(owner, known, attach)
        elif not self.model.detached or number > 1:
            self.expect(owner, NotOwnedError, attach)
        else:
            self.at(owner, attach)
            self.model.attach(owner)
            assert self.at(owner, partial(verdict, lock)) == (self.last_token, self.was_abandoned)

    @precondition(lambda self: self.model.holder is not None)
    @rule()
    def lease_ends(self) -> None:
        end_lease(self.server, self.name)
        self.model.take()
        # They would ask by themselves at the end of the lease that they were told of.
        for owner in list(self.waiting):
            self.clients[owner]._table.reconnected()
        self.granted(self.model.hand_over())

    @rule()
    def operator_frees(self) -> None:
        forced = self.operator.force_release(self.name)
        if self.model.holder is None:
            assert forced is None
            return
        assert forced is not None
        assert int(forced) == self.last_token
        self.model.take()
        self.granted(self.model.hand_over())

    @invariant()
    def server_says_the_same(self) -> None:
        model, info = self.model, self.operator.inspect(self.name)
        assert info.locked is (model.holder is not None)
        assert info.detached is model.detached
        if model.holder is not None:
            depth = 1 if model.detached else model.holds[model.holder].depth
            assert (info.owner or "").startswith(self.clients[model.holder].id)
            assert (info.count, info.token) == (depth, self.last_token)
        assert [waiter.owner.partition("/")[0] for waiter in info.waiters] == [
            self.clients[owner].id for owner in model.queue
        ]

    def teardown(self) -> None:
        for future, cancellation in self.waiting.values():
            cancellation.cancel()
            future.exception(PATIENCE_SECONDS)
        for owner, lock in enumerate(self.locks):
            self.at(owner, partial(unwind, lock))
        self.operator.force_release(self.name)  # it may be detached
        assert self.server.leftovers(self.name) <= {":withdrawn"}


def verdict(lock: fencedlock.RLock) -> tuple[int, bool]:
    return int(lock.token), lock.abandoned


def unwind(lock: fencedlock.RLock) -> None:
    while lock._is_owned():
        try:
            lock.release()
        except LockLostError:
            pass


def end_lease(server: LockServer, name: str) -> None:
    """End the lease as the server does by itself when its time is up."""
    if isinstance(server, RedisServer):
        with server.client() as raw:
            raw.pexpire(f"fencedlock:{{{name}}}", 1)
            eventually(lambda: not raw.exists(f"fencedlock:{{{name}}}"))
        return
    assert isinstance(server, EtcdServer)
    connections, known = server.connections(), messages()
    (holder,) = connections.call(
        calls.RANGE, known.RangeRequest(key=locks_prefix("fencedlock", name) + b"/holder"), 10
    ).kvs
    connections.call(calls.LEASE_REVOKE, known.LeaseRevokeRequest(ID=holder.lease), 10)
    connections.close()


@pytest.mark.timeout(300)
def test_a_lock_does_what_its_model_does(
    backend: LockServer, connect: Callable[..., fencedlock.Client]
) -> None:
    class Machine(LockMachine):
        server = backend
        clients = tuple(connect(backend.url, ttl=TTL_SECONDS) for _ in range(OWNERS + 1))
        threads = tuple(ThreadPoolExecutor(1) for _ in range(OWNERS))

    examples = 60 if isinstance(backend, RedisServer) else 25
    checks = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Machine, settings=checks)
    finally:
        for thread in Machine.threads:
            thread.shutdown(wait=False, cancel_futures=True)
