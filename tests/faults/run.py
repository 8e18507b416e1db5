"""One run: it starts servers, contenders in processes, nemeses and a witness, and judges what they
wrote down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import fencedlock
from fencedlock.clock import now_seconds
from tests.faults import hosts
from tests.faults.history import NOTE, OK, History, Recorder, Violation, load
from tests.faults.hosts import Host
from tests.faults.nemeses import Nemesis
from tests.faults.registers import REGISTERS
from tests.faults.rules import overlaps, stalls, violations
from tests.faults.targets.base import Target
from tests.faults.wire import Link, Network
from tests.faults.worker import Settings, inspect

SLOTS = 3
THREADS = 2
TASKS = 2
LOCKS = ("fair", "mixed")
LOOK_SECONDS = 0.05


@dataclass
class Report:
    """The results of a run."""

    target: str
    nemeses: tuple[str, ...]
    seed: int
    seconds: float
    operations: int
    grants: int
    losses: int
    writes: int
    refused_writes: int
    faults: int
    overlaps: int
    """The number of pairs of holds that were valid at the same time after a fault that, as
    documented, may cause this.
    """
    longest_stall_seconds: float
    violations: list[Violation] = field(default_factory=list)
    folder: str = ""

    def line(self) -> str:
        """Return a line about the run, for people."""
        return (
            f"{self.target:12} {'+'.join(self.nemeses):20.60} seed {self.seed}: {self.operations} "
            f"operations, {self.grants} grants, {self.losses} lost, {self.writes} writes, "
            f"{self.refused_writes} refused, {self.faults} faults, {self.overlaps} excused "
            f"overlaps, stall {self.longest_stall_seconds:.2f} s, {len(self.violations)} violations"
        )


class Slot:
    """A slot for a process of contenders. When the process is killed, another one takes it."""

    def __init__(
        self, name: str, settings: Settings, links: list[Link], log: Path, host: Host | None
    ) -> None:
        self.name = name
        self.links = links
        self.host = host
        self.mutex = threading.Lock()
        self.process = ""
        self._settings = settings
        self._log = log
        self._generation = 0
        self._spare = self._spawn()
        self._running: subprocess.Popen[str] | None = None

    def _spawn(self) -> subprocess.Popen[str]:
        """Start a process that imports everything and then waits for its settings."""
        command = [
            *(self.host.command if self.host else []),
            sys.executable,
            "-m",
            "tests.faults.worker",
        ]
        with self._log.open("a") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True
            )

    def start(self) -> None:
        self._generation += 1
        self.process = f"{self.name}.{self._generation}"
        self._running, self._spare = self._spare, self._spawn()
        settings = dataclasses.replace(self._settings, process=self.process)
        self.order(json.dumps(dataclasses.asdict(settings)))

    def order(self, line: str) -> None:
        assert self._running is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended and written down why
            self._stdin(self._running).write(line + "\n")
            self._stdin(self._running).flush()

    def freeze(self) -> None:
        assert self._running is not None
        self._running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._running.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self._running is not None
        self._running.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self._running is not None
        self._end(self._running)

    def stop(self) -> None:
        """Tell the process to end by itself."""
        assert self._running is not None
        with contextlib.suppress(BrokenPipeError):
            self._stdin(self._running).close()

    def wait(self, timeout_seconds: float) -> str | None:
        """Wait until the process has ended. Return what went wrong, or None."""
        assert self._running is not None
        try:
            status = self._running.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._running.send_signal(signal.SIGUSR1)  # the tracebacks of its threads go to the log
            time.sleep(0.5)
            return f"it did not end within {timeout_seconds} s: {self._log.read_text()[-6000:]}"
        return f"it ended with status {status}: {self._log.read_text()[-3000:]}" if status else None

    def close(self) -> None:
        for process in (self._running, self._spare):
            if process is not None:
                self._end(process)

    @classmethod
    def _end(cls, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            cls._stdin(process).close()

    @staticmethod
    def _stdin(process: subprocess.Popen[str]) -> IO[str]:
        assert process.stdin is not None
        return process.stdin


class Run:
    """One run, from the start of the servers to the end of the last process."""

    def __init__(
        self,
        target: Target,
        nemeses: Sequence[Nemesis],
        seed: int,
        folder: Path,
        stores: dict[str, Any],
        *,
        plant: str = "",
    ) -> None:
        self.target = target
        self.nemeses = nemeses
        self.seed = seed
        self.folder = folder
        self.stores = stores
        self.plant = plant
        self.server_mutex = threading.Lock()
        """Held during a deed, so that only one at a time is done to the servers' processes."""
        self.slots: list[Slot] = []
        self._ending = threading.Event()
        self._events = folder / "events"
        self._events.mkdir()
        self._recorder = Recorder(self._events, "run")
        self._open: contextlib.ExitStack = contextlib.ExitStack()

    def last(self, seconds: float) -> Report:
        """Run for this many seconds, judge the history and return the report."""
        with self._open:
            self._begin()
            threads = [
                threading.Thread(target=self._haunt, args=(nemesis,), name=nemesis.name)
                for nemesis in self.nemeses
            ]
            witness = threading.Thread(target=self._witness, name="witness")
            for thread in (witness, *threads):
                thread.start()
            time.sleep(seconds)
            self._ending.set()
            for thread in (*threads, witness):
                thread.join()
            self._end()
        self._recorder.close()
        return self._judge(seconds)

    # --- the parts of a run

    def _begin(self) -> None:
        self._open.callback(self.target.stop)
        self.target.start()
        network = Network()
        self._open.callback(network.close)
        names = {nemesis.name for nemesis in self.nemeses}
        for number in range(SLOTS):
            host = self._host() if number == SLOTS - 1 and "partition" in names else None
            near = host.address if host else "127.0.0.1"
            links = [
                network.link(
                    partial(self._port, place), random.Random(f"{self.seed} {number} {place}"), near
                )
                for place in range(len(self.target.ports()))
            ]
            settings = Settings(
                process="",
                folder=str(self._events),
                url=self.target.url([link.endpoint for link in links]),
                seed=self.seed,
                lease_seconds=self.target.lease_seconds,
                socket_timeout_seconds=self.target.socket_timeout_seconds,
                threads=THREADS,
                tasks=TASKS,
                locks=LOCKS,
                stores=self.stores,
                plant=self.plant,
            )
            slot = Slot(f"p{number}", settings, links, self.folder / f"p{number}.log", host)
            self._open.callback(slot.close)
            self.slots.append(slot)
            slot.start()

    def _port(self, place: int) -> int:
        return self.target.ports()[place]

    def _host(self) -> Host:
        host = Host()
        self._open.callback(host.close)
        return host

    def _haunt(self, nemesis: Nemesis) -> None:
        """Let a nemesis strike again and again, but less often if there are more nemeses."""
        rng = random.Random(f"{self.seed} {nemesis.name}")
        pause = self.target.lease_seconds * (0.2 + 0.25 * len(self.nemeses))
        while not self._ending.wait(rng.uniform(0.3, 1.7) * pause):
            try:
                self._inflict(nemesis, rng)
            except Exception as error:  # the fault did not happen, so the run does not test it
                self._recorder.write(
                    "run", NOTE, "unexpected", text=f"{nemesis.name} failed: {error!r}"
                )
                raise

    def _inflict(self, nemesis: Nemesis, rng: random.Random) -> None:
        seconds = rng.uniform(*nemesis.leases) * self.target.lease_seconds
        deed = nemesis.deed(self, rng)
        try:
            targets = list(next(deed))
            self._note_fault(nemesis, "begin", targets)
            if nemesis.name == "kill-client":
                self._recorder.write("run", NOTE, "killed", process=targets[0])
            next(deed)
            self._ending.wait(seconds)
            next(deed, None)
        finally:
            deed.close()
            self._note_fault(nemesis, "end", [])

    def _note_fault(self, nemesis: Nemesis, phase: str, targets: list[str]) -> None:
        data = {
            "name": nemesis.name,
            "phase": phase,
            "targets": targets,
            "breaks_exclusion": nemesis.breaks_exclusion,
        }
        aftermath_seconds = nemesis.aftermath_leases * self.target.lease_seconds
        self._recorder.write("run", NOTE, "fault", **data, aftermath_seconds=aftermath_seconds)

    def _witness(self) -> None:
        """Look at the locks again and again, over a network that no nemesis breaks."""
        with self._connect() as client:
            while not self._ending.wait(LOOK_SECONDS):
                for lock in LOCKS:
                    inspect(self._recorder, "witness/0", client, lock)

    def _connect(self) -> fencedlock.Client:
        url = self.target.url([f"127.0.0.1:{port}" for port in self.target.ports()])
        return fencedlock.connect(
            url, ttl=self.target.lease_seconds, socket_timeout=self.target.socket_timeout_seconds
        )

    def _end(self) -> None:
        """When all faults are healed, kill one process, let the others end, and record whatever is
        left.
        """
        bounds = self.target.bounds
        time.sleep(self.target.lease_seconds / 2)
        doomed = self.slots[self.seed % SLOTS]
        self._recorder.write("run", NOTE, "killed", process=doomed.process)
        doomed.kill()
        for slot in self.slots:
            slot.stop()
        for slot in self.slots:
            wrong = None if slot is doomed else slot.wait(3 * bounds.settle_seconds)
            if wrong is not None:
                self._recorder.write(slot.process, NOTE, "unexpected", text=wrong)
        healed_at = now_seconds()
        with self._connect() as client:
            for name in LOCKS:
                self._recover(client, name, healed_at)

    def _recover(self, client: fencedlock.Client, name: str, healed_at: float) -> None:
        bounds, lock = self.target.bounds, client.FairLock(name)
        if not lock.acquire(timeout=max(0.0, healed_at + bounds.settle_seconds - now_seconds())):
            self._recorder.write(
                "run",
                NOTE,
                "unrecovered",
                name,
                text=f"a probe does not get the lock: {client.inspect(name)}",
            )
            return
        lock.release()
        time.sleep(
            max(
                0.0,
                healed_at
                + bounds.lease_seconds
                + bounds.expiry_seconds
                + bounds.clock_step_seconds
                - now_seconds(),
            )
        )
        if lock.acquire(False):
            lock.release()
        if left := self.target.leftovers(name):
            self._recorder.write(
                "run",
                NOTE,
                "unrecovered",
                name,
                text=f"left behind: {left}, {client.inspect(name)}",
            )

    def _judge(self, seconds: float) -> Report:
        history = History(load(self._events))
        done = Counter((operation.what, operation.outcome) for operation in history.operations)
        return Report(
            target=self.target.kind,
            nemeses=tuple(nemesis.name for nemesis in self.nemeses),
            seed=self.seed,
            seconds=seconds,
            operations=len(history.operations),
            grants=len(history.holds),
            losses=sum(hold.lost_at < float("inf") for hold in history.holds),
            writes=done["write", OK],
            refused_writes=sum("stored" in operation.got for operation in history.operations),
            faults=len(history.faults),
            overlaps=sum(excused for _, _, excused in overlaps(history)),
            longest_stall_seconds=max(
                (ended - begun for begun, ended, _ in stalls(history)), default=0.0
            ),
            violations=violations(history, self.target.bounds),
            folder=str(self.folder),
        )


def why_not(target: Target, nemesis: str) -> str | None:
    """Return the reason why this nemesis can't work on these servers here. None if it can."""
    return hosts.why_not() if nemesis == "partition" else target.why_not(nemesis)


def prepared_stores(folder: Path, postgresql: dict[str, str] | None) -> dict[str, Any]:
    """Make the registers of a run. Return the arguments with which to connect to each."""
    found: dict[str, Any] = {"sqlite": str(folder / "registers.sqlite")}
    if postgresql is not None:
        found["postgresql"] = postgresql
    for name, how in found.items():
        with contextlib.closing(REGISTERS[name](how)) as register:
            register.prepare()
    return found
