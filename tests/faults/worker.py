"""A process of contenders. These are threads, and tasks of an event loop, that take locks, nest,
renew and write behind a fence, and write down what they see.

``python -m tests.faults.worker`` reads a line of JSON with its settings from its standard input.
After that it reads orders, one on each line: ``fork``, ``fork-in-c``, ``interrupt`` with the
seconds for which signal handlers raise in the main thread, and ``clock`` with the seconds by which
its wall clock is ahead from now on. The process ends at the end of the input.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import fencedlock
import fencedlock.asyncio
from fencedlock.backends.etcd import connections
from fencedlock.clock import now_seconds
from fencedlock.core.lease import LeaseState
from fencedlock.runtime.detaching import digest_of
from tests.faults import plants
from tests.faults.history import FAIL, INVOKE, NOTE, OK, UNKNOWN, Recorder
from tests.faults.registers import REGISTERS, RefusedError
from tests.faults.tasks import LockOfTask, Loop, Task, unanswered
from tests.forks import fork_in_c

AnyLock: TypeAlias = fencedlock.RLock | LockOfTask

MOST_DEPTH = 4
DETACH_SHARE = 0.05
"""How often a contender detaches its hold instead of releasing it."""
USED_SHARE = 0.3
"""How often it tries a secret once more that was used."""
MOST_CHILD_LEASES = 8
MOST_END_SECONDS = 5
_local = threading.local()


class TimeLimit(Exception):  # noqa: N818 - job queues name theirs so
    """A signal handler raises it in the middle of a call, as the time limits of job queues do."""


class TimeLimitError(TimeoutError):
    """The same, but an OSError, as in the recipe with ``signal.alarm``."""


class Alarm:
    """Lets signals interrupt the calls of the contender in the main thread."""

    def __init__(self) -> None:
        self.armed = False

    def handle(self, _number: int, _frame: object) -> None:
        if self.armed:
            self.armed = False
            raise TimeLimit if time.monotonic_ns() & 64 else TimeLimitError


_alarm = Alarm()


@dataclass(frozen=True)
class Settings:
    """The settings of a worker."""

    process: str
    folder: str
    url: str
    seed: int
    lease_seconds: float
    socket_timeout_seconds: float
    threads: int
    tasks: int
    locks: tuple[str, ...]
    stores: dict[str, Any]
    """Maps the name of each register to the arguments with which to connect to it."""
    plant: str = ""


class NoAnswer(logging.Handler):
    """Notices when a release had no answer. Such a release returns all the same, and goes on in the
    background.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if "had no answer" in record.msg:
            _local.answered = False
            unanswered[str(record.args[0] if isinstance(record.args, tuple) else "")] += 1


class Worker:
    """The threads of a process, and the objects that they share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.folder)
        self.recorder = Recorder(self.folder, settings.process)
        self.secrets = self.folder.parent / "secrets"
        """The folder with the secrets of holds that were detached, one in each file."""
        self.secrets.mkdir(exist_ok=True)
        self.stopping = threading.Event()
        self.client = fencedlock.connect(
            settings.url,
            ttl=settings.lease_seconds,
            socket_timeout=settings.socket_timeout_seconds,
            outage_timeout=20 * settings.lease_seconds,
        )
        self.going = threading.Event()
        """Cleared while the contenders have to stand still."""
        self.going.set()
        self._forks = itertools.count(1)
        self._children: list[int] = []
        self._copies_of_grpc: set[int] = set()
        """Children that were forked in C from a process that uses gRPC. The fork handlers of gRPC
        may kill them.
        """

    def run(self) -> None:
        """Contend in some threads, and in the main thread, in which signals are handled."""
        signal.signal(signal.SIGUSR2, _alarm.handle)
        names = [f"{self.settings.process}/{number}" for number in range(self.settings.threads)]
        threads = [threading.Thread(target=self.contend, args=(name,)) for name in names[1:]]
        loop = Loop()
        threads += [
            threading.Thread(
                target=self.contend,
                args=(f"{self.settings.process}/task{number}",),
                kwargs={"task": Task(loop.loop)},
            )
            for number in range(self.settings.tasks)
        ]
        threads.append(threading.Thread(target=self.obey))
        for thread in threads:
            thread.start()
        self.contend(names[0], alarm=_alarm)
        for thread in threads:
            thread.join()
        loop.close()
        for child in self._children:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status and not (
                child in self._copies_of_grpc
                and status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
            ):
                self.recorder.write(
                    self.settings.process,
                    NOTE,
                    "unexpected",
                    text=f"the child {child} ended with status {status}",
                )
        self.expect(
            "a connection or a place at the gate is still taken, though nobody calls",
            lambda: not self.taken(),
        )
        self.client.close()
        self.expect("a thread of the closed client goes on", lambda: not self.threads())

    def expect(self, otherwise: str, condition: Callable[[], bool]) -> None:
        """Write down that something is wrong unless the condition becomes true soon."""
        give_up_at = now_seconds() + 3 * self.settings.lease_seconds + MOST_END_SECONDS
        while not condition():
            if now_seconds() > give_up_at:
                self.recorder.write(
                    self.settings.process,
                    NOTE,
                    "unexpected",
                    text=f"{otherwise}: {self.taken()} {self.threads()}",
                )
                return
            time.sleep(0.01)

    def taken(self) -> list[str]:
        """Return the connections in use and the calls under way. An exception in the middle of a
        call must leave none behind.
        """
        backend: Any = self.client._table.backend
        if self.settings.url.startswith("etcd"):
            calls = [str(visit) for visit in list(backend.connections._gate.inside)]
            # The stream of the inbox is always inside the gate.
            return calls[len(backend.connections._streams) :]
        wires = [known() for known in list(backend.connections._known)]
        return [
            str(wire)
            for wire in wires
            if wire is not None and wire not in backend.connections._idle
        ]

    def threads(self) -> list[str]:
        """Return the names of the library's threads in this process."""
        return [
            thread.name for thread in threading.enumerate() if thread.name.startswith("fencedlock")
        ]

    def obey(self) -> None:
        """Carry out the orders until the input ends."""
        rng = random.Random(f"{self.settings.seed} {self.settings.process} orders")
        for order in sys.stdin:
            what, *arguments = order.split()
            if what == "fork":
                self.fork(os.fork)
            elif what == "fork-in-c":
                self.fork_in_c()
            elif what == "interrupt":
                self.interrupt(now_seconds() + float(*arguments), rng)
            elif what == "clock":
                set_wall_clock(float(*arguments))
        self.stopping.set()

    def fork_in_c(self) -> None:
        """Fork as uWSGI does, so that none of Python's fork hooks run.

        CPython itself does not survive such a fork while other threads pass the GIL around. So the
        contenders stand still meanwhile, and keep what they hold, or wait for a lock.
        """
        self.going.clear()
        try:
            self.fork(partial(fork_in_c, now_seconds() + self.settings.lease_seconds / 3))
        finally:
            self.going.set()

    def stand(self) -> None:
        """Wait while the contenders have to stand still."""
        self.going.wait()

    def interrupt(self, until: float, rng: random.Random) -> None:
        """Make the main thread's signal handler raise again and again."""
        main = threading.main_thread().ident
        assert main is not None
        while now_seconds() < until and not self.stopping.is_set():
            signal.pthread_kill(main, signal.SIGUSR2)
            time.sleep(rng.choice([0.0002, 0.001, 0.005, 0.02]) * rng.uniform(0.5, 1.5))

    def contend(
        self,
        who: str,
        until: float = float("inf"),
        alarm: Alarm | None = None,
        task: Task | None = None,
    ) -> None:
        """Take locks until told to stop, by a task if one is given."""
        try:
            contender = Contender(self, who, alarm, task, until)
            while not self.stopping.is_set() and now_seconds() < until:
                contender.visit()
        except BaseException:
            self.recorder.write(who, NOTE, "unexpected", text=traceback.format_exc())

    def fork(self, fork: Callable[[], int]) -> None:
        """Fork, whatever the threads do at this moment. The child contends for a while as a process
        of its own.
        """
        process = f"{self.settings.process}.{next(self._forks)}"
        with warnings.catch_warnings():
            # Python 3.12 warns of forks in processes with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = fork()
        if pid:
            if pid > 0:
                self._children.append(pid)
            if fork is not os.fork and connections.core.is_used:
                self._copies_of_grpc.add(pid)
            return
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, MOST_CHILD_LEASES * self.settings.lease_seconds)
            self.stopping, self.going = threading.Event(), threading.Event()
            self.going.set()
            self.recorder = Recorder(self.folder, process)
            # No hook runs in a child that was forked in C. It learns of the fork in its first call.
            assert self.client.id
            inherited = [hold.bound.name for hold in self.client._table.heartbeat.holds()]
            if inherited:
                self.recorder.write(
                    process,
                    NOTE,
                    "unexpected",
                    text=f"the child holds what its parent holds: {inherited}",
                )
            # SQLite's locks in the child would be those of the parent's connections.
            self.settings.stores.pop("sqlite", None)
            if not connections.core.is_broken:
                self.contend(f"{process}/0", now_seconds() + 2 * self.settings.lease_seconds)
            else:
                self.expect_refusal(process)
            self.client.close()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def expect_refusal(self, process: str) -> None:
        """Check that a copy forked in C gets an error at once, because gRPC does not work in it."""
        begun = now_seconds()
        try:
            granted = self.client.RLock(self.settings.locks[0]).acquire(
                timeout=self.settings.lease_seconds
            )
        except fencedlock.BackendMisconfiguredError:
            took = now_seconds() - begun
            if took < self.settings.lease_seconds:
                return
            self.recorder.write(process, NOTE, "unexpected", text=f"the refusal took {took} s")
        except fencedlock.BackendUnavailableError:
            return  # the fork came before gRPC was used, and the network was broken
        else:
            self.recorder.write(
                process,
                NOTE,
                "unexpected",
                text=f"a copy that was forked in C has used gRPC's channel: {granted}",
            )


class Contender:
    """What one thread or task does, with the locks and registers that it uses."""

    def __init__(
        self,
        worker: Worker,
        who: str,
        alarm: Alarm | None = None,
        task: Task | None = None,
        until: float = float("inf"),
    ) -> None:
        self.who = who
        self._task = task
        self._until = until
        self._alarm = alarm
        self.worker = worker
        self.lease_seconds = worker.settings.lease_seconds
        self.random = random.Random(f"{worker.settings.seed} {who}")
        self.registers = {
            name: REGISTERS[name](how) for name, how in worker.settings.stores.items()
        }
        self.locks = [self._lock(name) for name in worker.settings.locks]
        self._values = itertools.count(1)
        self._used: list[tuple[AnyLock, str]] = []
        """The secrets that this contender has used, or has tried to use, with their locks."""

    def _lock(self, name: str) -> AnyLock:
        cls = "FairLock" if name.startswith("fair") or self.random.random() < 0.5 else "RLock"

        def on_lost(lock: Any, reason: str) -> None:
            latest = lock._settings.latest
            claim = latest.claim_id if latest and latest.state is LeaseState.LOST else ""
            self.worker.recorder.write(self.who, NOTE, "lost", name, reason=reason, claim=claim)

        if self._task is None:
            lock: fencedlock.RLock = getattr(self.worker.client, cls)(name, on_lost=on_lost)
            return lock
        make = getattr(fencedlock.asyncio, cls)
        return LockOfTask(self._task, make(name, client=self.worker.client, on_lost=on_lost))

    def write(self, phase: str, what: str, lock: AnyLock, /, **data: Any) -> None:
        self.worker.recorder.write(self.who, phase, what, lock.name, **data)

    def interruptible(self, action: Callable[[], Any]) -> Any:
        """Call the library. In the main thread, a signal handler may raise TimeLimit or
        TimeLimitError in the middle of the call.
        """
        if self._alarm is None:
            return action()
        try:
            self._alarm.armed = True
            return action()
        finally:
            self._alarm.armed = False

    def think(self, seconds: float) -> None:
        self.worker.stand()
        time.sleep(self.random.expovariate(1 / seconds) if seconds else 0)

    # --- one outermost hold

    def visit(self) -> None:
        """Try to take a lock, live with it for a while, and give it back."""
        self.think(0.002)
        lock = self.attached()
        if lock is None:
            lock = self.random.choice(self.locks)
            if not self.acquire(lock):
                return
        try:
            self.live(lock)
        except fencedlock.LockLostError:
            if self.random.random() < 0.5:
                # A holder that does not look may write now. The store must refuse a late write.
                self.write_register(lock)
        while lock._is_owned():
            if lock._recursion_count() == 1 and self.random.random() < DETACH_SHARE:
                self.detach(lock)
            else:
                self.release(lock)

    def acquire(self, lock: AnyLock) -> bool:
        kind = self.random.random()
        blocking, timeout, cancel, timer = True, None, None, None
        if kind < 0.1:
            blocking, timeout = False, 0.0
        elif kind < 0.15:
            timeout = self.random.uniform(0, 0.05)
        elif kind < 0.8:
            timeout = self.random.uniform(0, 4 * self.lease_seconds)
        elif kind < 0.9:
            cancel = fencedlock.Cancellation()
            timer = threading.Timer(self.random.uniform(0, self.lease_seconds), cancel.cancel)
        timeout = self._limited(timeout)
        self.write(INVOKE, "acquire", lock, timeout=timeout, fair=lock._fair)
        if timer is not None:
            timer.start()
        try:
            granted = self.interruptible(
                lambda: lock.acquire(
                    blocking, -1 if timeout is None or not blocking else timeout, cancel=cancel
                )
            )
        except (TimeLimit, TimeLimitError) as error:
            granted = lock._is_owned()  # the exception may have come just after the return
            if not granted:
                self.write(FAIL, "acquire", lock, why=type(error).__name__)
                return False
        except (fencedlock.BackendUnavailableError, fencedlock.AcquireCancelledError) as error:
            self.write(FAIL, "acquire", lock, why=type(error).__name__)
            return False
        except fencedlock.BackendError as error:
            self.write(FAIL, "acquire", lock, refused=str(error))
            return False
        finally:
            if timer is not None:
                timer.cancel()
        if not granted:
            self.write(FAIL, "acquire", lock, why="busy")
            return False
        self.write_hold("acquire", lock)
        return True

    def write_hold(self, what: str, lock: AnyLock) -> None:
        """Write down that this operation has given the lock, and how it is held."""
        hold = lock._owned()
        self.write(
            OK,
            what,
            lock,
            claim=hold.claim_id,
            token=hold.token,
            deadline=hold.deadline,
            abandoned=hold.abandoned,
        )

    def _limited(self, timeout: float | None) -> float | None:
        """Return a timeout with which the contender does not wait for long after its end."""
        if self._until == float("inf"):
            return timeout
        most_seconds = max(0.0, self._until - now_seconds()) + self.lease_seconds
        return most_seconds if timeout is None else min(timeout, most_seconds)

    def live(self, lock: AnyLock) -> None:
        """Do something with a held lock. Raises LockLostError as soon as a loss is noticed."""
        steps: list[tuple[float, Callable[[AnyLock], None]]] = [
            (6, lambda lock: self.think(0.002)),
            (4, self.nest),
            (3, self.unnest),
            (1, self.renew),
            (2, self.look),
            (8, self.write_register),
            (1, self.ask),
            (0.1, self.linger),
            (0.03, self.doze),
        ]
        for _ in range(self.random.randint(0, 8)):
            (_, step), *_ = self.random.choices(steps, [weight for weight, _ in steps])
            step(lock)
            self.look(lock)

    def look(self, lock: AnyLock) -> None:
        """Make sure that the lock is held, and write down its deadline."""
        asked_at = now_seconds()
        lock.ensure_held()
        self.write(NOTE, "held", lock, asked_at=asked_at, deadline=lock._owned().deadline)

    def ask(self, lock: AnyLock) -> None:
        """Ask the server for the state of the held lock, and write it down."""
        inspect(self.worker.recorder, self.who, self.worker.client, lock.name)

    def linger(self, lock: AnyLock) -> None:
        """Keep holding for half a lease up to 1.8 leases, and look at the lock all the time."""
        until = now_seconds() + self.random.uniform(0.5, 1.8) * self.lease_seconds
        while now_seconds() < until:
            self.look(lock)
            self.think(0.02)

    def doze(self, _lock: AnyLock) -> None:
        """Keep holding for half a lease up to 1.8 leases, without a look at the lock."""
        time.sleep(self.random.uniform(0.5, 1.8) * self.lease_seconds)

    def nest(self, lock: AnyLock) -> None:
        depth = lock._recursion_count() + 1
        if depth > MOST_DEPTH:
            return
        inner: AnyLock = lock
        if self.random.random() < 0.5:
            client = self.worker.client
            inner = lock.again(client) if isinstance(lock, LockOfTask) else client.RLock(lock.name)
        self.attempt(
            "nest", lock, lambda: inner.acquire(timeout=self.random.choice([-1, 0, 1])), depth=depth
        )

    def unnest(self, lock: AnyLock) -> None:
        depth = lock._recursion_count() - 1
        if depth > 0:
            self.attempt("unnest", lock, lock.release, depth=depth)

    def renew(self, lock: AnyLock) -> None:
        lease = self.random.choice(
            [None, self.lease_seconds, self.random.uniform(1.0, 1.5) * self.lease_seconds]
        )
        self.attempt("renew", lock, lambda: lock.renew(lease), lease=lease)

    def attempt(self, what: str, lock: AnyLock, action: Callable[[], object], **given: Any) -> None:
        self.write(INVOKE, what, lock, **given)
        try:
            self.interruptible(action)
        except fencedlock.LockLostError:
            self.write(FAIL, what, lock, lost=True, deadline=0.0)
            raise
        except fencedlock.BackendUnavailableError:
            outcome = UNKNOWN
        except (TimeLimit, TimeLimitError):  # the exception may have come just after the return
            outcome = OK if what != "renew" and lock._owned().depth == given["depth"] else UNKNOWN
        else:
            outcome = OK
        hold = lock._owned()
        self.write(outcome, what, lock, token=hold.token, depth=hold.depth, deadline=hold.deadline)

    def release(self, lock: AnyLock) -> None:
        """Release once. The last release frees the lock."""
        hold = lock._owned()
        depth = hold.depth - 1
        what: str = "unnest" if depth else "release"
        given: dict[str, Any] = {"depth": depth} if depth else {"claim": hold.claim_id}
        self.write(INVOKE, what, lock, **given, deadline=hold.deadline)
        _local.answered = True
        try:
            if self.interruptible(lock.release) is False:
                _local.answered = False
        except fencedlock.LockLostError:
            self.write(FAIL, what, lock, lost=True)
        except (TimeLimit, TimeLimitError):
            _local.answered = False
            if lock._recursion_count() == depth + 1 and lock._owned() is hold:
                self.write(
                    UNKNOWN, what, lock, depth=hold.depth, token=hold.token, deadline=hold.deadline
                )
                return  # the exception came before the release began
            self.write(OK, what, lock, answered=False, depth=hold.depth, token=hold.token)
        else:
            self.write(OK, what, lock, answered=_local.answered, depth=hold.depth, token=hold.token)

    # --- holds that go from one contender to another one, of any process

    def detach(self, lock: AnyLock) -> None:
        """Detach an outermost hold, and leave its secret for somebody else."""
        hold = lock._owned()
        self.write(
            INVOKE,
            "detach",
            lock,
            claim=hold.claim_id,
            token=hold.token,
            deadline=hold.deadline,
            lease=hold.lease_seconds,
        )
        try:
            secret = self.interruptible(lock.detach)
        except fencedlock.LockLostError:
            self.write(FAIL, "detach", lock, lost=True, owned=lock._is_owned())
        except (TimeLimit, TimeLimitError, fencedlock.BackendUnavailableError):
            self.write(UNKNOWN, "detach", lock, owned=lock._is_owned())
        except fencedlock.BackendError as error:
            self.write(FAIL, "detach", lock, refused=str(error), owned=lock._is_owned())
        else:
            self.write(OK, "detach", lock, digest=digest_of(secret))
            # Others attach it within a millisecond, so it is seldom detached at any other moment.
            used = [before for of, before in self._used[-3:] if of is lock]
            if used and self.random.random() < USED_SHARE:
                self.attach(lock, self.random.choice(used))
            file = self.worker.secrets / f"{lock.name} {digest_of(secret)[:16]}"
            unfinished = file.with_name(f".{file.name}")
            unfinished.write_text(secret)
            unfinished.rename(file)

    def attached(self) -> AnyLock | None:
        """Attach a hold that somebody has detached. Return its lock, or None if there is none."""
        for file in self.worker.secrets.glob("[!.]*"):
            mine = file.with_name(f".{file.name} {self.who.replace('/', ' ')}")
            with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                file.rename(mine)
                secret, name = mine.read_text(), file.name.partition(" ")[0]
                (lock,) = (lock for lock in self.locks if lock.name == name)
                self._used.append((lock, secret))
                return lock if self.attach(lock, secret) else None
        if self._used and self.random.random() < USED_SHARE:
            lock, secret = self.random.choice(self._used[-3:])
            return lock if self.attach(lock, secret) else None
        return None

    def attach(self, lock: AnyLock, secret: str) -> bool:
        self.write(INVOKE, "attach", lock, digest=digest_of(secret))
        try:
            self.interruptible(lambda: lock.attach(secret))
        except (TimeLimit, TimeLimitError) as error:
            if not lock._is_owned():  # the exception may have come just after the return
                self.write(UNKNOWN, "attach", lock, why=type(error).__name__)
                return False
        except fencedlock.NotOwnedError as error:
            self.write(FAIL, "attach", lock, why=type(error).__name__)
            return False
        except fencedlock.BackendUnavailableError as error:
            self.write(UNKNOWN, "attach", lock, why=type(error).__name__)
            return False
        except fencedlock.BackendError as error:
            self.write(FAIL, "attach", lock, why="refused", refused=str(error))
            return False
        self.write_hold("attach", lock)
        return True

    # --- the work that the lock protects

    def write_register(self, lock: AnyLock) -> None:
        """Read, think and write back in a single transaction that begins with the check of the
        token.
        """
        store = self.random.choice(list(self.registers))
        register, token, value = (
            self.registers[store],
            lock.token,
            f"{self.who}:{next(self._values)}",
        )
        self.write(INVOKE, "write", lock, store=store, token=int(token), value=value)
        try:
            with register.transaction():
                version, found = register.check_and_read(token)
                self.think(self.random.choice([0, 0, 0.003, 0.02]))
                register.write(lock.name, version + 1, value)
        except fencedlock.StaleTokenError as error:
            self.write(FAIL, "write", lock, stored=error.stored)
        except RefusedError as error:
            self.write(FAIL, "write", lock, why=str(error))
        else:
            self.write(OK, "write", lock, read_version=version, read_value=found)


def set_wall_clock(ahead_seconds: float) -> None:
    """Show another time of day to the library and to redis-py. gRPC does not see it, because it
    would pass it on to C code, which sees the true time.
    """
    clock = types.ModuleType("time")
    clock.__dict__.update(vars(time), time=lambda: time.time() + ahead_seconds)
    for name, module in list(sys.modules.items()):
        if name.startswith(("fencedlock.", "redis.")) and isinstance(
            getattr(module, "time", None), types.ModuleType
        ):
            module.time = clock  # type: ignore[attr-defined]


def inspect(recorder: Recorder, who: str, client: fencedlock.Client, name: str) -> None:
    """Ask the server for the state of a lock, and write down the answer."""
    recorder.write(who, INVOKE, "inspect", name)
    try:
        info = client.inspect(name)
    except fencedlock.BackendError as error:
        recorder.write(who, FAIL, "inspect", name, why=str(error))
        return
    said = {
        "owner": info.owner,
        "token": info.token,
        "count": info.count,
        "remaining": info.remaining,
    }
    recorder.write(
        who, OK, "inspect", name, **said, queue=[waiter.owner for waiter in info.waiters]
    )


def main() -> None:
    """Contend with the settings in the first line of the input."""
    settings = json.loads(sys.stdin.readline())
    settings["locks"] = tuple(settings["locks"])
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.getLogger("fencedlock").addHandler(NoAnswer())
    logging.getLogger("fencedlock").propagate = False
    made = Settings(**settings)
    plants.plant(made.plant)
    worker = Worker(made)
    worker.recorder.write(made.process, NOTE, "born", pid=os.getpid())
    worker.run()


if __name__ == "__main__":
    main()
