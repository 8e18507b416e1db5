"""Programs that end: ``python -m tests.environments.exiting SCENARIO URL NAME ...``.

Only the scenarios import fencedlock.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import fencedlock

TIMES = 20
PATIENCE_SECONDS = 30


def handler(url: str, name: str, when: str) -> None:
    """An exit handler takes a lock.

    It is registered before the import of fencedlock or after it, or takes the first lock of all.
    """

    def flush() -> None:
        import fencedlock

        lock = (
            fencedlock.connect(url, ttl=30).RLock(name)
            if when == "first lock"
            else fencedlock.RLock(name)
        )
        with lock, lock:
            lock.ensure_held()
            print("flushed", flush=True)

    if when == "before the import":
        atexit.register(flush)
    import fencedlock

    if when != "first lock":
        fencedlock.configure(url, ttl=30)
        with fencedlock.RLock(f"{name}/used"):
            pass
    if when != "before the import":
        atexit.register(flush)


def frozen(url: str, name: str, clients: str) -> None:
    """Several clients hold and wait when the program ends, and their server does not answer."""
    import fencedlock
    from tests.conftest import eventually

    kept = [fencedlock.connect(url, ttl=30) for _ in range(int(clients))]
    locks = [client.RLock(f"{name}/{client.id}/{number}") for client in kept for number in range(5)]
    for lock in locks:
        lock.acquire()
    for client in kept:
        threading.Thread(target=kept[0].RLock(f"{name}/{client.id}/0").acquire, daemon=True).start()
    eventually(lambda: len(list(kept[0].inspect(f"{name}/{kept[1].id}/0").waiters)) == 1)
    print("freeze", flush=True)
    sys.stdin.readline()
    atexit.register(_keep, kept, locks)  # so that none is collected before the exit handlers run


def _keep(*_: object) -> None:
    """Do nothing. The arguments of an exit handler stay alive."""


# --- clients that are dropped without close()


def _hold(client: fencedlock.Client, name: str) -> None:
    with client.RLock(f"{name}/{client.id}"):
        pass


def _look(client: fencedlock.Client, name: str) -> None:
    client.inspect(name)
    list(client.locks(name))
    client.ping()


def _try(client: fencedlock.Client, name: str) -> None:
    assert not client.RLock(name).acquire(False)


def _wait(client: fencedlock.Client, name: str) -> None:
    from fencedlock import BackendUnavailableError

    try:
        assert not client.FairLock(name).acquire(timeout=0.02)
    except BackendUnavailableError:
        pass  # a busy machine takes longer to connect


KINDS: dict[str, Callable[[Any, str], None]] = {
    "hold": _hold,
    "look": _look,
    "try": _try,
    "wait": _wait,
    "never used": lambda *_: None,
}


def _count() -> tuple[int, int]:
    """Return the numbers of open files and of threads."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def dropped(url: str, name: str, kind: str) -> None:
    import fencedlock
    from tests.conftest import eventually

    keeper = fencedlock.connect(url, ttl=30)
    held = keeper.RLock(name)
    held.acquire()
    KINDS[kind](fencedlock.connect(url, ttl=30), name)
    files, threads = _count()
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while (now := _count()) != (files, threads) and time.monotonic() < give_up_at:
        files, threads = now
        time.sleep(0.1)
    for _ in range(TIMES):
        KINDS[kind](fencedlock.connect(url, ttl=30), name)
    eventually(
        lambda: all(
            after <= before + 1 for after, before in zip(_count(), (files, threads), strict=True)
        ),
        PATIENCE_SECONDS,
    )
    held.ensure_held()
    held.release()
    keeper.close()


SCENARIOS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (handler, frozen, dropped)
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
    print("done", flush=True)
