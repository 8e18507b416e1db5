"""One simulated run: contenders in processes, nemeses and a witness, and the judgement of what they
saw.

The contenders and the rules are those of ``tests/faults``.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fencedlock
from fencedlock.client import Client
from fencedlock.clock import Deadline
from fencedlock.fencing.base import stale_token
from fencedlock.runtime.callbacks import Callbacks
from tests.faults import registers, worker
from tests.faults.history import NOTE, Event, History, Violation
from tests.faults.rules import overlaps, violations
from tests.simulation import primitives
from tests.simulation.nemeses import SimulatedNemesis
from tests.simulation.network import Link
from tests.simulation.primitives import Local, Mutex, Timer, here, inside, system_of
from tests.simulation.systems import SOCKET_TIMEOUT_SECONDS, System
from tests.simulation.world import Process, Thread, World

SLOTS = 3
THREADS = 2
LOCKS = ("fair", "mixed")
LOOK_SECONDS = 0.2
_LOCAL_TIMES = ("deadline", "asked_at")
"""What contenders write down by the clocks of their processes."""


@dataclass
class Report:
    """The results of a run."""

    seed: int
    nemeses: tuple[str, ...]
    operations: int
    grants: int
    overlaps: int
    violations: list[Violation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"seed {self.seed} {'+'.join(self.nemeses):.60}: {self.operations} operations, "
            f"{self.grants} grants, {self.overlaps} excused overlaps, "
            f"{len(self.violations)} violations"
        )


class Recorder:
    """Writes down what one process sees, with the time of the world."""

    def __init__(self, events: list[Event], process: Process | None = None) -> None:
        self._events = events
        self._ahead_seconds = 0.0 if process is None else process.ahead_seconds

    def write(self, who: str, phase: str, what: str, lock: str = "", /, **data: Any) -> None:
        for name in _LOCAL_TIMES:
            if data.get(name):
                data[name] -= self._ahead_seconds
        self._events.append(Event(here().now, who, phase, what, lock, data))


class Register:
    """A value with a version and a token for each lock, in a store that all processes share."""

    def __init__(self, rows: dict[str, tuple[int, str, int]], mutexes: dict[str, Mutex]) -> None:
        self._rows = rows
        self._mutexes = mutexes
        self._written: dict[str, tuple[int, str, int]] = {}
        self._mutex: Mutex | None = None

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._written = {}
        try:
            yield
            self._rows.update(self._written)
        finally:
            if self._mutex is not None and self._mutex._is_owned():
                self._mutex.release()
            self._mutex = None

    def check_and_read(self, token: fencedlock.FencingToken) -> tuple[int, str]:
        mutex = self._mutexes.setdefault(token.lock, Mutex())
        if not mutex.acquire(timeout=2):
            raise registers.RefusedError("somebody else has the row")
        self._mutex = mutex
        version, value, highest = self._rows.get(token.lock, (0, "", 0))
        if highest > int(token):
            raise stale_token(token, token.lock, highest)
        self._token = int(token)
        self._written[token.lock] = version, value, self._token
        return version, value

    def write(self, lock: str, version: int, value: str) -> None:
        self._written[lock] = version, value, self._token


class Secrets:
    """A folder with the secrets of holds that were detached, as the contenders use it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def glob(self, _pattern: str) -> list[SecretFile]:
        return [SecretFile(self, name) for name in sorted(self.texts) if not name.startswith(".")]

    def __truediv__(self, name: str) -> SecretFile:
        return SecretFile(self, name)


class SecretFile:
    def __init__(self, folder: Secrets, name: str) -> None:
        self.folder, self.name = folder, name

    def with_name(self, name: str) -> SecretFile:
        return SecretFile(self.folder, name)

    def write_text(self, text: str) -> None:
        self.folder.texts[self.name] = text

    def read_text(self) -> str:
        return self.folder.texts[self.name]

    def rename(self, other: SecretFile) -> None:
        if self.name not in self.folder.texts:
            raise FileNotFoundError(self.name)
        self.folder.texts[other.name] = self.folder.texts.pop(self.name)


class Contenders:
    """The contenders of one process, as far as they need to know of each other."""

    def __init__(self, run: Run, process: Process, link: Link) -> None:
        self.process = process
        self.recorder = Recorder(run.events, process)
        self.settings = worker.Settings(
            process=process.name,
            folder="",
            url=run.system.url,
            seed=run.seed,
            lease_seconds=run.system.lease_seconds,
            socket_timeout_seconds=SOCKET_TIMEOUT_SECONDS,
            threads=THREADS,
            tasks=0,
            locks=LOCKS,
            stores={"store": run},
        )
        self.secrets = run.secrets
        self.stopping = self
        self.is_stopping = False
        self._link = link
        self._run = run

    def begin(self) -> None:
        """Connect, and contend in some threads. Called in a thread of the process."""
        self.client = self._run.connect(self.process, self._link)
        for number in range(THREADS):
            who = f"{self.process.name}/{number}"
            self.process.start(partial(self._contend, who), who)

    def is_set(self) -> bool:
        return self.is_stopping

    def stand(self) -> None:
        pass

    def _contend(self, who: str) -> None:
        contender = worker.Contender(self, who)  # type: ignore[arg-type]
        while not self.is_stopping:
            contender.visit()


class Run:
    """One run in a world of its own."""

    def __init__(self, system: System, seed: int, nemeses: tuple[str, ...]) -> None:
        self.system = system
        self.seed = seed
        self.nemeses = nemeses
        self.lease_seconds: float = system.lease_seconds
        self.events: list[Event] = []
        self.rows: dict[str, tuple[int, str, int]] = {}
        self.mutexes: dict[str, Mutex] = {}
        self.secrets = Secrets()
        self.world = World(seed)
        self.server = system.server(self.world)
        self.slots: list[Contenders] = []
        self.links: list[Link] = []
        self.clients: list[Client] = []
        self._processes: list[Process] = []
        self._generations = Counter[int]()
        self._recorder = Recorder(self.events)

    def last(self, seconds: float) -> Report:
        """Let everything happen for so many seconds, and judge it."""
        world = self.world
        with inside(world):
            try:
                for number in range(SLOTS):
                    self.links.append(Link(world))
                    self.slots.append(self._start(number))
                witness = self._process("witness")
                witness.start(lambda: self._look(witness), "0")
                for nemesis in self.nemeses:
                    self._haunt(
                        self.system.nemeses[nemesis],
                        random.Random(f"{self.seed} {nemesis}"),
                        seconds,
                    )
                world.run(world.now + seconds)
                self._end()
            finally:
                for client in self.clients:  # a heartbeat goes on after any error
                    client._table.heartbeat._stop_by = Deadline(0.0)
                world.close(self._processes)
                for client in self.clients:
                    client._table.closed = True  # nothing is left to be done at the exit
                    del client._table
        return self._judge()

    def connect(self, process: Process, link: Link) -> Client:
        """Return a client of the library in this process."""
        self.clients.append(
            Client(
                lambda client_id: self.system.backend(client_id, process, self.server, link),
                ttl=self.lease_seconds,
                outage_timeout=20 * self.lease_seconds,
                callbacks=Callbacks(),
                recipe=None,
            )
        )
        return self.clients[-1]

    def _process(self, name: str) -> Process:
        self._processes.append(Process(self.world, name))
        return self._processes[-1]

    def _start(self, slot: int) -> Contenders:
        self._generations[slot] += 1
        process = self._process(f"p{slot}.{self._generations[slot]}")
        contenders = Contenders(self, process, self.links[slot])
        process.start(contenders.begin, "main")
        return contenders

    def _look(self, witness: Process) -> None:
        client = self.connect(witness, Link(self.world))
        recorder: Any = Recorder(self.events, witness)
        while True:
            primitives.sleep(LOOK_SECONDS)
            for lock in LOCKS:
                worker.inspect(recorder, "witness/0", client, lock)

    def kill(self, slot: int) -> None:
        """Kill the process of a slot, and start another one."""
        contenders = self.slots[slot]
        self._recorder.write("run", NOTE, "killed", process=contenders.process.name)
        contenders.process.kill()
        self.server.forget(contenders.process)
        self.slots[slot] = self._start(slot)

    def raise_floor(self, lock: str, seconds: float) -> None:
        """Have an operator put the tokens of a lock so far ahead of the last one."""
        operator = self._process(f"operator{self.world.number('process')}")

        def act() -> None:
            client = self.connect(operator, Link(self.world))
            with contextlib.suppress(fencedlock.BackendError):
                issued = client.inspect(lock).issued or 0
                floor = fencedlock.FencingToken(lock, issued + int(seconds * 1e6))
                client.raise_floor(floor)
                self.server.replicate()  # the operator has waited for the replica

        operator.start(act, "0")

    def _haunt(self, nemesis: SimulatedNemesis, rng: random.Random, seconds: float) -> None:
        """Let a nemesis strike again and again, but less often if there are more nemeses."""
        pause = self.lease_seconds * (0.2 + 0.25 * len(self.nemeses))
        ends_at = self.world.now + seconds

        def strike() -> None:
            if self.world.now >= ends_at:
                return
            lasts = rng.uniform(*nemesis.leases) * self.lease_seconds
            targets, heal = nemesis.deed(self, rng)
            self._note(nemesis, "begin", targets)
            self.world.after(min(lasts, max(0.0, ends_at - self.world.now)), healed, heal)

        def healed(heal: Callable[[], object]) -> None:
            heal()
            self._note(nemesis, "end", [])
            again()

        def again() -> None:
            self.world.after(rng.uniform(0.3, 1.7) * pause, strike)

        again()

    def _note(self, nemesis: SimulatedNemesis, phase: str, targets: list[str]) -> None:
        self._recorder.write(
            "run",
            NOTE,
            "fault",
            name=nemesis.name,
            phase=phase,
            targets=targets,
            breaks_exclusion=nemesis.breaks_exclusion,
            aftermath_seconds=0.0,
        )

    def _end(self) -> None:
        """When all faults are healed, let the contenders end, and see whether a probe gets on."""
        for contenders in self.slots:
            contenders.is_stopping = True
        threads = [
            thread
            for contenders in self.slots
            for thread in contenders.process.threads
            if "/" in thread.name
        ]
        self._run_until_ended(threads, 20 * self.lease_seconds)
        for thread in threads:
            if not thread.has_ended:
                self._recorder.write(
                    thread.process.name, NOTE, "unexpected", text=f"{thread.name} hangs"
                )
        probe = self._process("probe")
        got: list[str] = []

        def take_all() -> None:
            client = self.connect(probe, Link(self.world))
            for name in LOCKS:
                lock = client.FairLock(name)
                if lock.acquire(timeout=5):
                    got.append(name)
                    lock.release()

        self._run_until_ended([probe.start(take_all, "0")], 10 * self.lease_seconds + 10)
        for name in LOCKS:
            if name not in got:
                text = "a probe does not get the lock"
                self._recorder.write("run", NOTE, "unrecovered", name, text=text)

    def _run_until_ended(self, threads: list[Thread], seconds: float) -> None:
        """Let everything happen until these threads have ended, or for so many seconds."""
        until = self.world.now + seconds
        while self.world.now < until and not all(thread.has_ended for thread in threads):
            self.world.run(min(until, self.world.now + LOOK_SECONDS))

    def _judge(self) -> Report:
        history = History(self.events)
        return Report(
            self.seed,
            self.nemeses,
            len(history.operations),
            len(history.holds),
            sum(excused for _, _, excused in overlaps(history)),
            violations(history, self.system.bounds),
            self.events,
        )


@contextlib.contextmanager
def simulated(system: System) -> Iterator[None]:
    """Make runs possible: the library and the contenders use what is simulated."""
    logger = logging.getLogger("fencedlock")
    handler, propagate = worker.NoAnswer(), logger.propagate
    with system_of(worker) as patches:
        system.patch(patches)
        patches.set(worker, "_local", Local())
        patches.set(threading, "Timer", Timer)
        registers.REGISTERS["store"] = lambda run: Register(run.rows, run.mutexes)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
            del registers.REGISTERS["store"]


def simulate(system: System, seed: int, nemeses: tuple[str, ...], seconds: float) -> Report:
    """Run once, within :func:`simulated`."""
    return Run(system, seed, nemeses).last(seconds)
