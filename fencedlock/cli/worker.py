"""A worker process of the demo: it repeatedly adds one to the balance while it holds the lock."""

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
    """The worker holds the lock, has read the balance, and waits for a message before it writes."""

    pid: int
    token: int
    incident: int
    """The number of the incident in the script."""


@dataclass(frozen=True, slots=True)
class Woken:
    """The outcome of the write of a worker that was frozen past its lease."""

    pid: int
    knew: bool
    """True if its lock told it, by the local clock, that the lease had ended."""
    refused: bool
    """True if the store refused its write."""


@dataclass(frozen=True, slots=True)
class Done:
    """The worker has made all its updates."""

    pid: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker can't go on."""

    words: str


class Script:
    """The plan of the incidents, which all processes share.

    Each incident begins as soon as all processes together have made a given number of updates. It
    happens to the process that holds the lock at that moment. So no particular process has to be
    waited for, and it does not matter which one starts late on a busy machine.
    """

    def __init__(self, context: SpawnContext, incidents_at: Sequence[int]) -> None:
        self._incidents_at = list(incidents_at)
        self._shared = context.Array("i", 2)  # the updates made, and the incidents begun

    def note_update(self) -> None:
        """Count an update that the store has accepted."""
        with self._shared.get_lock():
            self._shared[0] += 1

    def begin_incident(self) -> int | None:
        """Return the number of the incident that is due, or None if none is.

        Each number is returned to one caller only.
        """
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
    """Make ``updates`` updates, and report each to the parent.

    When the script tells of an incident, report that too, and wait for the parent's answer while
    holding the lock.
    """
    end_with_parent(signal.SIGKILL)  # SIGKILL ends a frozen process too
    # Lost locks are expected here, and the parent reports them.
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
    """Make one update; return False if the store refused it because it came too late."""
    asked_at = now_seconds()
    written = True
    incident = None
    # An update that the store has accepted counts, even if the lock was lost.
    with contextlib.suppress(LockLostError), lock as token:
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
