"""One process of the demo: it reads the balance, adds one and writes it back, under the lock."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path

from fencedlock import FencedLockError, LockLostError, RLock, StaleTokenError, connect
from fencedlock.backends.guardian import end_with_parent
from fencedlock.cli.account import Account
from fencedlock.clock import now_seconds


@dataclass(frozen=True, slots=True)
class Updated:
    """An update was written."""

    pid: int
    token: int
    waited_seconds: float
    entered_at: float
    left_at: float


@dataclass(frozen=True, slots=True)
class Holding:
    """The worker holds the lock, has read the balance, and waits for a word before it writes."""

    pid: int
    token: int
    incident: int
    """The number of the incident in the script."""


@dataclass(frozen=True, slots=True)
class Woken:
    """What became of the write of a worker that was frozen past its lease."""

    pid: int
    knew: bool
    """Its lock told it, by the local clock, that the lease had ended."""
    refused: bool
    """The store refused its write."""


@dataclass(frozen=True, slots=True)
class Done:
    """The worker has made all its updates."""

    pid: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker can't go on."""

    words: str


class Script:
    """When incidents begin: each as soon as all processes together have made so many updates.

    Shared by the processes. An incident happens to whoever holds the lock at that moment, so nobody
    has to be waited for, and it does not matter which process starts late on a busy machine.
    """

    def __init__(self, context: SpawnContext, incidents_at: Sequence[int]) -> None:
        self._incidents_at = list(incidents_at)
        self._shared = context.Array("i", 2)  # the updates made, and the incidents begun

    def note_update(self) -> None:
        """Count an update that the store has accepted."""
        with self._shared.get_lock():
            self._shared[0] += 1

    def begin_incident(self) -> int | None:
        """The number of the incident that is due, for one caller only; None if none is."""
        with self._shared.get_lock():
            made, begun = self._shared[:]
            if begun == len(self._incidents_at) or made < self._incidents_at[begun]:
                return None
            self._shared[1] += 1
            return int(begun)


def work(
    parent: Connection,
    url: str,
    lock_name: str,
    ttl: float,
    outage_timeout: float,
    account_path: Path,
    updates: int,
    script: Script,
    *,
    check_tokens: bool,
) -> None:
    """Make so many updates; where the script tells of an incident, tell the parent and wait for its word while holding."""
    end_with_parent(signal.SIGKILL)  # which ends a frozen process too
    # Losses are part of the show, and the parent tells of them.
    logging.getLogger("fencedlock").setLevel(logging.CRITICAL)
    account = Account(account_path, check_tokens=check_tokens)
    try:
        with connect(url, ttl=ttl, outage_timeout=outage_timeout) as client:
            lock = client.FairLock(lock_name)
            made = 0
            while made < updates:
                if _update(parent, lock, account, script):
                    made += 1
        parent.send(Done(os.getpid()))
    except FencedLockError as error:
        parent.send(Failed(str(error)))
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the parent is gone
    finally:
        account.close()


def _update(parent: Connection, lock: RLock, account: Account, script: Script) -> bool:
    """One update; False if the store refused it, for it came too late."""
    asked_at = now_seconds()
    written = True
    incident = None
    with contextlib.suppress(LockLostError), lock as token:  # what the store accepted counts
        entered_at = now_seconds()
        try:
            balance = account.read(token)
            incident = script.begin_incident()
            if incident is not None:
                parent.send(Holding(os.getpid(), int(token), incident))
                parent.recv()
            account.write(token, balance + 1)
            script.note_update()
            parent.send(
                Updated(os.getpid(), int(token), entered_at - asked_at, entered_at, now_seconds())
            )
        except StaleTokenError:
            written = False
        if incident is not None:
            parent.send(Woken(os.getpid(), knew=_is_lost(lock), refused=not written))
    return written


def _is_lost(lock: RLock) -> bool:
    try:
        lock.ensure_held()
    except LockLostError:
        return True
    return False
