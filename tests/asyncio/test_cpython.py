"""CPython's own tests of ``asyncio.Lock``, unmodified, judge our Lock.

They are written for a lock in one process, which changes hands within one turn of the loop, and
they look at its private list of waiters. An adapter gives them what a lock behind a network can't
have: ``asyncio.sleep(0)`` waits until nothing is under way, ``locked()`` does not ask the server,
``_waiters`` lists what the waiting tasks await, and ``repr`` has CPython's form.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import unittest
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import fencedlock
import fencedlock.asyncio
from tests.servers import LockServer

try:
    from test.test_asyncio import test_locks
except ImportError:
    pytest.skip("this Python comes without its test package", allow_module_level=True)

CANT_PASS = {
    "test_cancel_release_race": "a cancellation and a grant in one turn of the loop: here a grant "
    "comes by the network",
}
"""The tests that can't pass, and why."""

_numbers = itertools.count(1)


def adapter(client: fencedlock.Client) -> SimpleNamespace:
    """Return what the tests take for the module ``asyncio``."""
    locks: list[Any] = []

    class Lock(fencedlock.asyncio.Lock):
        def __init__(self) -> None:
            super().__init__(f"asyncio/{next(_numbers)}", client=client)
            self._under_way = 0
            locks.append(self)

        async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ASYNC109
            self._under_way += 1
            try:
                return await super().acquire(blocking, timeout)
            finally:
                self._under_way -= 1

        def locked(self) -> bool:  # type: ignore[override]
            return self.owned()

        def __repr__(self) -> str:
            state = "locked" if self.owned() else "unlocked"
            return f"<{type(self).__qualname__} object at {id(self):#x} [{state}]>"

        @property
        def _waiters(self) -> list[Any]:
            return [claim.bell._sleep for claim in self._claims() if claim.bell._sleep]

        def _claims(self) -> list[Any]:
            claims: list[Any] = list(client._table.claims.values())
            return [claim for claim in claims if claim.bound.name == self.name and claim.bell]

        async def is_quiet(self) -> bool:
            """Return True if the server and the tasks agree on who holds and who waits."""
            hold = self._hold()
            info = await self.info()
            return (
                self._under_way == len(self._claims())  # nobody connects, or asks
                and (info.locked or not info.waiters)  # nobody is about to take it
                and info.owner == (hold and hold.claim_id)
                and {claim.id for claim in self._claims()} == {each.owner for each in info.waiters}
                and hold is self._hold()
            )

    Lock.__qualname__ = "Lock"

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        if seconds == 0:
            for lock in locks:
                while not await lock.is_quiet():  # noqa: ASYNC110 - it asks the server
                    await asyncio.sleep(0)

    names = {name: getattr(asyncio, name) for name in dir(asyncio) if not name.startswith("__")}
    return SimpleNamespace(**names | {"Lock": Lock, "sleep": sleep})


def test_suite(
    backend: LockServer,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(test_locks, "asyncio", adapter(connect(backend.url, ttl=10)))
    loader = unittest.defaultTestLoader
    names = loader.getTestCaseNames(test_locks.LockTests)
    assert set(CANT_PASS) < set(names)
    suite = unittest.TestSuite(
        test_locks.LockTests(name) for name in names if name not in CANT_PASS
    )
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite)
    assert result.wasSuccessful(), [*result.failures, *result.errors]
    assert result.testsRun == len(names) - len(CANT_PASS) > 8
