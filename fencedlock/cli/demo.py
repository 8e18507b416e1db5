"""``fencedlock demo``: processes update one account through a lock while incidents happen.

One holder is frozen past its lease, and one is killed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from fencedlock.backends.targets import without_password
from fencedlock.cli.account import Account
from fencedlock.cli.arguments import at_least
from fencedlock.cli.worker import Done, Failed, Holding, Script, Updated, Woken, work
from fencedlock.client import Client
from fencedlock.clock import now_seconds
from fencedlock.connecting import connect
from fencedlock.errors import BackendUnavailableError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

BAR_WIDTH = 24
REDRAW_SECONDS = 0.05

UPDATES_WHILE_FROZEN = 10
"""The number of updates by others after which a frozen holder is woken.

At least 12 updates are left for the others when a holder is frozen, whichever worker it is.
"""

FREEZE, KILL = 0, 1
"""The numbers of the incidents: the first after a quarter of all updates, the second after half."""

OUTAGE_SECONDS = 5.0
"""The time for which the server may give no answer before the demo reports it."""

HELP = "let processes update one account while one holder is frozen and one is killed"
DESCRIPTION = (
    "Several processes update one account in a SQLite file under a FairLock, and check its fencing "
    "token in each transaction. On the way one holder is frozen past its lease and woken, and one "
    "is killed. Exit status 1 if an update is lost although tokens are checked."
)

SILENCE_SECONDS = 60.0
SILENCE_PAUSES = 20
"""How long the workers may be silent before the demo reports that something is broken.

The limit is the greater one of ``SILENCE_SECONDS`` and ``SILENCE_PAUSES`` times the longest pause
so far, plus the lease.
"""

_spawn = multiprocessing.get_context("spawn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's arguments."""
    parser.add_argument(
        "--url",
        default="embedded://",
        help="the lock server (default: %(default)s, a local redis-server started on demand)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(3),
        default=4,
        metavar="N",
        help="processes, at least 3 (default: %(default)s)",
    )
    parser.add_argument(
        "--updates",
        type=at_least(10),
        default=100,
        metavar="N",
        help="updates by each, at least 10 (default: %(default)s)",
    )
    parser.add_argument(
        "--ttl",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="lease, at least 0.1 (default: %(default)s)",
    )
    parser.add_argument(
        "--unsafe", action="store_true", help="do not check tokens, and see what that costs"
    )


def main(options: argparse.Namespace) -> int:
    """Run the demo with these options, and return its exit status."""
    return run(
        options.url,
        workers=options.workers,
        updates=options.updates,
        ttl=options.ttl,
        check_tokens=not options.unsafe,
    )


def run(url: str, *, workers: int, updates: int, ttl: float, check_tokens: bool) -> int:
    """Run the demo, print what happened, and return the exit status.

    It is 1 if tokens were checked and yet an update was lost or no stale write was refused.
    Otherwise it is 0.
    """
    with (
        connect(url, ttl=ttl, outage_timeout=OUTAGE_SECONDS) as client,
        tempfile.TemporaryDirectory(prefix="fencedlock-demo-") as folder,
    ):
        path = Path(folder) / "account.db"
        account = Account(path, check_tokens=check_tokens)
        lock_name = f"demo/{secrets.token_hex(4)}/account"
        with client.FairLock(lock_name):  # raises now, before anything starts, if there's no server
            pass
        print(
            f"{workers} processes make {updates} updates each of one account, in a SQLite file, "
            "under"
        )
        print(f"FairLock({lock_name!r}) at {without_password(url)}, lease {ttl:g} s;")
        print(
            "tokens are checked in every transaction"
            if check_tokens
            else "tokens are NOT checked: this is to see what that costs"
        )
        script = Script(_spawn, incidents_at=(workers * updates // 4, workers * updates // 2))
        show = _Show(url, lock_name, ttl, path, check_tokens=check_tokens, script=script)
        try:
            show.start(workers, updates)
            show.watch()
        finally:
            show.end_workers()
        found = account.read(None)
        account.close()
        return _report(
            show, wanted=workers * updates, found=found, check_tokens=check_tokens, client=client
        )


@dataclass(slots=True)
class _Incident:
    """A holder that was frozen or killed, and the updates that others have made since."""

    pid: int
    token: int
    began_at: float
    overcome_at: float | None = None
    updates_since: int = 0

    def saw(self, update: Updated) -> None:
        if update.token > self.token:
            self.updates_since += 1
            if self.overcome_at is None:
                self.overcome_at = update.entered_at

    def covers(self, begin: float, end: float) -> bool:
        return begin < (self.overcome_at or end) and end > self.began_at


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    left: int


@dataclass(slots=True)
class _Show:
    url: str
    lock_name: str
    ttl: float
    path: Path
    check_tokens: bool = field(kw_only=True)
    script: Script = field(kw_only=True)
    workers: dict[Connection, _Worker] = field(default_factory=dict)
    history: list[Updated] = field(default_factory=list)
    wanted: int = 0
    frozen: _Incident | None = None
    killed: _Incident | None = None
    woken: Woken | None = None
    _shown: int = 0
    _drawn_at: float = 0.0
    _live: bool = field(default_factory=sys.stdout.isatty)

    def start(self, workers: int, updates: int) -> None:
        self.wanted = workers * updates
        for _ in range(workers):
            self._start_worker(updates)

    def _start_worker(self, updates: int) -> None:
        ours, theirs = _spawn.Pipe()
        arguments = (
            theirs,
            self.url,
            self.lock_name,
            self.ttl,
            OUTAGE_SECONDS,
            self.path,
            updates,
            self.script,
        )
        process = _spawn.Process(
            target=work, args=arguments, kwargs={"check_tokens": self.check_tokens}, daemon=True
        )
        # The worker inherits that SIGINT is ignored: Ctrl-C ends this process, which ends the
        # worker.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()
        self.workers[ours] = _Worker(process, updates)

    def watch(self) -> None:
        """Handle what the workers report until all are done.

        Raises BackendUnavailableError if a worker fails, or if all are silent for too long.
        """
        longest_pause = 0.0
        while self.workers:
            patience = max(SILENCE_SECONDS, SILENCE_PAUSES * longest_pause) + self.ttl
            asked_at = now_seconds()
            ready = wait(list(self.workers), patience)
            if not ready:
                raise BackendUnavailableError(f"no worker has made an update for {patience:.0f} s")
            longest_pause = max(longest_pause, now_seconds() - asked_at)
            for connection in ready:
                assert isinstance(connection, Connection)
                self._hear(connection)
            self._draw()
        self._draw(last=True)

    def _hear(self, connection: Connection) -> None:
        worker = self.workers[connection]
        try:
            news = connection.recv()
        except EOFError:
            worker.process.join()
            raise BackendUnavailableError(
                f"a worker ended with status {worker.process.exitcode}"
            ) from None
        if isinstance(news, Updated):
            worker.left -= 1
            self._note(news)
        elif isinstance(news, Holding):
            if news.incident == FREEZE:
                self._freeze(news)
            else:
                self._kill(connection, news)
        elif isinstance(news, Woken):
            self.woken = news
            fate = "refused by the store" if news.refused else "ACCEPTED by the store"
            self._say(f"process {news.pid} wakes up, and its write with its old token is {fate}")
        elif isinstance(news, Done):
            self._dismiss(connection)
        elif isinstance(news, Failed):
            raise BackendUnavailableError(f"a worker gave up: {news.words}")

    def _note(self, update: Updated) -> None:
        self.history.append(update)
        for incident in (self.frozen, self.killed):
            if incident is not None and incident.pid != update.pid:
                incident.saw(update)
        if (
            self.frozen is not None
            and self.woken is None
            and self.frozen.updates_since == UPDATES_WHILE_FROZEN
        ):
            self._wake(self.frozen)

    def _freeze(self, holding: Holding) -> None:
        os.kill(holding.pid, signal.SIGSTOP)
        self.frozen = _Incident(holding.pid, holding.token, now_seconds())
        self._say(
            f"process {holding.pid} holds token {holding.token}, and is frozen between reading and "
            "writing"
        )

    def _wake(self, frozen: _Incident) -> None:
        for connection, worker in self.workers.items():
            if worker.process.pid == frozen.pid:
                connection.send("go on")
        os.kill(frozen.pid, signal.SIGCONT)

    def _kill(self, connection: Connection, holding: Holding) -> None:
        os.kill(holding.pid, signal.SIGKILL)
        self.killed = _Incident(holding.pid, holding.token, now_seconds())
        left = self.workers[connection].left
        self._dismiss(connection)
        self._say(
            f"process {holding.pid} holds token {holding.token}, and is killed between reading and "
            "writing"
        )
        self._start_worker(left)
        self._say("and a new process makes the updates that it has left")

    def _dismiss(self, connection: Connection) -> None:
        self.workers.pop(connection).process.join()
        connection.close()

    def end_workers(self) -> None:
        """Kill all workers that are left, so that no process outlives the demo."""
        for worker in self.workers.values():
            worker.process.kill()  # SIGKILL ends a frozen one too
            worker.process.join()

    def _say(self, words: str) -> None:
        print(f"\r\033[K  {words}" if self._live else f"  {words}", flush=True)

    def _draw(self, *, last: bool = False) -> None:
        """Draw a progress bar in a terminal; elsewhere print a line after each quarter."""
        done, now = len(self.history), now_seconds()
        if not self._live:
            if self._shown < done * 4 // self.wanted:
                self._shown = done * 4 // self.wanted
                print(f"  {done} of {self.wanted} updates", flush=True)
        elif last or now >= self._drawn_at + REDRAW_SECONDS:
            self._drawn_at = now
            bar = "#" * min(BAR_WIDTH, done * BAR_WIDTH // self.wanted)
            line = f"  [{bar:<{BAR_WIDTH}}] {done}/{self.wanted}"
            if self.history:
                line += f"  token {self.history[-1].token}, process {self.history[-1].pid}"
            width = shutil.get_terminal_size().columns - 1  # a line that wraps can't be drawn over
            print(f"\r\033[K{line[:width]}", end="\n" if last else "", flush=True)


def _report(show: _Show, *, wanted: int, found: int, check_tokens: bool, client: Client) -> int:
    assert show.frozen is not None
    assert show.killed is not None
    assert show.woken is not None
    incidents = (show.frozen, show.killed)
    history = sorted(show.history, key=lambda update: update.entered_at)
    pairs = [
        (before, after) for before, after in itertools.pairwise(history) if before.pid != after.pid
    ]
    calm = [
        after.entered_at
        for before, after in pairs
        if not any(incident.covers(before.left_at, after.entered_at) for incident in incidents)
    ]
    stalled = sum(
        (incident.overcome_at or incident.began_at) - incident.began_at for incident in incidents
    )
    seconds = history[-1].left_at - history[0].entered_at - stalled
    waits = [
        (update.waited_seconds, update)
        for update in history
        if update.pid != show.woken.pid or update.token > show.frozen.token
    ]
    calm_waits = [
        waited
        for waited, update in waits
        if not any(
            incident.covers(update.entered_at - waited, update.entered_at) for incident in incidents
        )
    ]
    lost, refused = wanted - found, int(show.woken.refused)
    rows = [
        ("updates wanted", f"{wanted}"),
        ("updates found", f"{found}"),
        ("lost updates", f"{lost}"),
        ("stale writes refused", f"{refused}" if check_tokens else f"{refused} (nobody looked)"),
        (
            "hand-offs per second",
            f"{len(calm) / seconds:.0f}, with a read and a write of the account in each hold",
        ),
        (
            "longest wait",
            (
                f"{1000 * max(calm_waits, default=0):.0f} ms; "
                f"{max(waited for waited, _ in waits):.2f} s behind the frozen or killed holder"
            ),
        ),
        ("the frozen holder", _overcome(show.frozen)),
        (
            "  once woken",
            "it knew by its own clock that it had lost the lock, and tried all the same"
            if show.woken.knew
            else "it did NOT know that it had lost the lock",
        ),
        (
            "  its late write",
            "was refused by the store" if show.woken.refused else "was ACCEPTED over newer ones",
        ),
        ("the killed holder", _overcome(show.killed)),
        ("left on the server", _left(client, show.lock_name)),
    ]
    print()
    for label, value in rows:
        print(f"  {label:<22}{value}")
    print()
    if not check_tokens:
        what = "1 update is gone" if lost == 1 else f"{lost} updates are gone"
        print(f"Without the check {what}: the holder learned too late that it had")
        print("lost the lock, and the store did not ask. Run it again without --unsafe.")
        return 0
    if lost or not refused:
        print("DAMAGE: an update was lost, or a stale write accepted, although tokens were")
        print("checked. Please report this.")
        return 1
    print("No update was lost: the lock made conflicts rare, the fence made them harmless.")
    return 0


def _overcome(incident: _Incident) -> str:
    if incident.overcome_at is None:
        return f"process {incident.pid}: nobody came after it"
    return (
        f"process {incident.pid}: the next one went on after "
        f"{incident.overcome_at - incident.began_at:.2f} s"
    )


def _left(client: Client, lock_name: str) -> str:
    info = client.inspect(lock_name)
    if info.locked or info.waiters:
        return f"{info}"
    return "nothing" if info.issued is None else "nothing but the last token"
