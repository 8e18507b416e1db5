"""CPython's own tests of RLock and Condition, unmodified, judge our locks."""

from __future__ import annotations

import itertools
import sys
import threading
import unittest
import warnings
from collections.abc import Callable

import pytest

import fencedlock
from tests.servers import LockServer

try:
    from test import lock_tests
except ImportError:
    pytest.skip("this Python comes without its test package", allow_module_level=True)

_numbers = itertools.count(1)


@pytest.mark.parametrize(
    ("cls", "suite"),
    [
        ("Lock", "LockTests"),
        *itertools.product(["RLock", "FairLock"], ["RLockTests", "ConditionTests"]),
    ],
)
def test_suite(
    suite: str, cls: str, backend: LockServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(backend.url)
    _start_threads(client)
    make = lambda: getattr(client, cls)(f"cpython/{next(_numbers)}")  # noqa: E731
    hole = (
        {"locktype": staticmethod(make)}
        if suite != "ConditionTests"
        else {"condtype": staticmethod(lambda lock=None: threading.Condition(lock or make()))}
    )
    case = type(suite, (getattr(lock_tests, suite),), hole)
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    assert tests.countTestCases() > 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the suite drops held locks on purpose
        result = unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(tests)
    assert result.wasSuccessful(), [*result.failures, *result.errors]
    assert result.testsRun == tests.countTestCases()


def _start_threads(client: fencedlock.Client) -> None:
    """Start the client's threads before the suite, because the suite counts threads."""
    lock = client.RLock(f"cpython/{next(_numbers)}")
    with lock:
        waiter = threading.Thread(target=lock.acquire, kwargs={"timeout": 0.2})
        waiter.start()
        waiter.join()
