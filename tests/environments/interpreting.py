"""A program with two interpreters.

It is run as ``python -m tests.environments.interpreting URL NAME CONFIGURATION``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import fencedlock

THERE = """
import fencedlock
client = fencedlock.connect({url!r}, ttl=30)
lock = client.RLock({name!r})
assert client.id != {other_id!r}
{what}
"""


def main(url: str, name: str, configuration: str) -> None:
    interpreters: Any = importlib.import_module("_interpreters")
    client = fencedlock.connect(url, ttl=30)
    lock = client.RLock(name)
    second = interpreters.create(configuration)

    def run_there(what: str) -> None:
        failure = interpreters.run_string(
            second, THERE.format(url=url, name=name, other_id=client.id, what=what)
        )
        assert failure is None, failure.formatted

    with lock as token:
        run_there("assert not lock.acquire(False)\nassert not lock.acquire(timeout=0.1)")
        lock.ensure_held()
        assert client.inspect(name).token == int(token)
    run_there("lock.acquire()\nlock.ensure_held()")  # it does not release the lock
    assert not lock.acquire(False)
    interpreters.destroy(second)
    with lock:  # the end of the interpreter has released it, as the end of a process does
        lock.ensure_held()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
