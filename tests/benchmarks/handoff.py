"""Measures hand-offs among contenders for one lock, and messages between two raw sockets that play
ping-pong over pub/sub.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

from tests.benchmarks.contestants import CONTESTANTS, OURS, Lock
from tests.benchmarks.tables import Table, ratio

_spawn = multiprocessing.get_context("spawn")

BYSTANDER_SECONDS = 0.005
"""How long a thread that does not use locks sleeps each time. It reports how late it woke."""


@dataclass(frozen=True, slots=True)
class Run:
    rate: float
    """The acquisitions of all contenders per second."""
    longest_wait: float
    """The longest wait of a contender, in seconds."""
    spread: float
    """The acquisitions of the busiest contender divided by those of the idlest one."""
    stall: float = 0.0
    """How late the bystander in the same process woke at most, in seconds."""


def among_processes(
    label: str, port: int, processes: int, seconds: float, section_seconds: float = 0.0
) -> Run:
    barrier = _spawn.Barrier(processes)
    results = []
    name = f"handoff/{label}/{processes}/{section_seconds}"
    for _ in range(processes):
        ours_, theirs = _spawn.Pipe(duplex=False)
        process = _spawn.Process(
            target=_contender, args=(label, port, name, seconds, section_seconds, barrier, theirs)
        )
        process.start()
        results.append((process, ours_))
    counts, waits = zip(*(receiving.recv() for _, receiving in results), strict=True)
    for process, _ in results:
        process.join()
    return Run(sum(counts) / seconds, max(waits), max(counts) / max(1, min(counts)))


def _contender(
    label: str,
    port: int,
    name: str,
    seconds: float,
    section_seconds: float,
    barrier: Barrier,
    results: Connection,
) -> None:
    results.send(_contend(CONTESTANTS[label](port, name), seconds, section_seconds, barrier))


def _contend(
    lock: Lock, seconds: float, section_seconds: float, barrier: Barrier | threading.Barrier
) -> tuple[int, float]:
    """Return how often this contender got the lock, and how long it waited at most."""
    acquire, release = lock.acquire, lock.release
    acquire()  # this opens and loads everything that is needed
    release()
    barrier.wait()
    count, longest = 0, 0.0
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        asked = now
        acquire()
        now = time.perf_counter()
        longest = max(longest, now - asked)
        if section_seconds:
            time.sleep(section_seconds)
        release()
        count += 1
        now = time.perf_counter()
    return count, longest


def among_threads(label: str, port: int, threads: int, seconds: float) -> Run:
    """Run threads that contend for a lock, in a child process of their own."""
    receiving, sending = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_crowd, args=(label, port, threads, seconds, sending))
    process.start()
    run = receiving.recv()
    process.join()
    assert isinstance(run, Run)
    return run


def _crowd(label: str, port: int, threads: int, seconds: float, results: Connection) -> None:
    barrier = threading.Barrier(threads + 1)
    done: list[tuple[int, float]] = []
    name = f"threads/{label}/{threads}"
    # All threads of a process share one lock of ours. The locks of others store in themselves which
    # thread holds them, so each thread needs one.
    shared = CONTESTANTS[label](port, name) if label in OURS else None

    def contend() -> None:
        done.append(_contend(shared or CONTESTANTS[label](port, name), seconds, 0.0, barrier))

    crowd = [threading.Thread(target=contend) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    barrier.wait()
    stall, end = 0.0, time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        time.sleep(BYSTANDER_SECONDS)
        stall = max(stall, time.perf_counter() - before - BYSTANDER_SECONDS)
    for thread in crowd:
        thread.join()
    counts, waits = zip(*done, strict=True)
    results.send(Run(sum(counts) / seconds, max(waits), max(counts) / max(1, min(counts)), stall))


def ping_pong(port: int, seconds: float) -> float:
    """Return the messages per second between two processes that answer each other over pub/sub. An
    exchange is two messages.
    """
    receiving, sending = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_player, args=(port, b"pong", b"ping", seconds, sending))
    process.start()
    threading.Thread(
        target=_player, args=(port, b"ping", b"pong", seconds, None), daemon=True
    ).start()
    rate = receiving.recv()
    process.join()
    assert isinstance(rate, float)
    return rate


def _player(
    port: int, listen: bytes, answer: bytes, seconds: float, results: Connection | None
) -> None:
    inbox, wire = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
    for each in (inbox, wire):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inbox.sendall(b"SUBSCRIBE %b\r\n" % listen)
    inbox.recv(1024)
    ball = b"PUBLISH %b x\r\n" % answer
    if results is not None:
        reply = b""
        while b":1" not in reply:  # send the first message until the other process listens
            wire.sendall(ball)
            reply = wire.recv(1024)
    count, begun = 0, time.perf_counter()
    end = begun + seconds
    inbox.settimeout(1)
    try:
        while time.perf_counter() < end:
            inbox.recv(1024)
            wire.sendall(ball)
            wire.recv(1024)
            count += 2
    except TimeoutError:
        pass
    if results is not None:
        results.send(count / (time.perf_counter() - begun))


@dataclass(frozen=True)
class Measured:
    """The results of some interleaved rounds."""

    runs: dict[str, list[Run]]
    messages: list[float]
    """The rate of bare messages in each round. Empty if they were not measured."""


def measure(
    port: int,
    labels: Iterable[str],
    processes: int,
    rounds: int,
    seconds: float,
    *,
    section_seconds: float = 0.0,
    with_messages: bool = True,
) -> Measured:
    """Measure each contestant in turn, in each round."""
    run = partial(
        among_processes,
        port=port,
        processes=processes,
        seconds=seconds,
        section_seconds=section_seconds,
    )
    measured = Measured({label: [] for label in labels}, [])
    for _ in range(rounds):
        if with_messages:
            measured.messages.append(ping_pong(port, seconds))
        for label, done in measured.runs.items():
            done.append(run(label))
    return measured


def measure_threads(
    port: int, labels: Iterable[str], threads: int, rounds: int, seconds: float
) -> Measured:
    measured = Measured({label: [] for label in labels}, [])
    for _ in range(rounds):
        for label, done in measured.runs.items():
            done.append(among_threads(label, port, threads, seconds))
    return measured


def table(
    name: str, title: str, measured: Measured, base: str, *, with_stall: bool = False
) -> Table:
    """Return a table with a row for each contestant. If bare messages were measured, each rate is
    also given as a share of theirs.
    """
    made = Table(name, [title, "acquisitions/s", f"x {base}"])
    made.headings += ["x bare messages"] if measured.messages else []
    made.headings += ["longest wait", "busiest/idlest"]
    made.headings += ["bystander's stall"] if with_stall else []
    base_rates = _rates(measured.runs[base])
    for label, runs in measured.runs.items():
        rates = _rates(runs)
        row = [label, f"{statistics.median(rates):.0f}", ratio(rates, base_rates)]
        row += [ratio(rates, measured.messages)] if measured.messages else []
        row += [
            _milliseconds([run.longest_wait for run in runs]),
            f"{statistics.median(run.spread for run in runs):.2f}",
        ]
        row += [_milliseconds([run.stall for run in runs])] if with_stall else []
        made.rows.append(row)
    return made


def _rates(runs: Sequence[Run]) -> list[float]:
    return [run.rate for run in runs]


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} ms"
