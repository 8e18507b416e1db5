"""Processes that take one lock in turns with an empty section, and two raw sockets that play ping-pong over pub/sub."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

from tests.benchmarks.contestants import CONTESTANTS

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Run:
    rate: float
    """Acquisitions a second, of all processes."""
    longest_wait: float
    """Seconds."""
    spread: float
    """Acquisitions of the busiest process over those of the idlest."""


def contend(label: str, port: int, processes: int, seconds: float) -> Run:
    barrier = _spawn.Barrier(processes)
    results = []
    for _ in range(processes):
        ours, theirs = _spawn.Pipe(duplex=False)
        process = _spawn.Process(target=_contender, args=(label, port, f"handoff/{label}/{processes}", seconds, barrier, theirs))
        process.start()
        results.append((process, ours))
    counts, waits = zip(*(ours.recv() for _, ours in results), strict=True)
    for process, _ in results:
        process.join()
    return Run(sum(counts) / seconds, max(waits), max(counts) / max(1, min(counts)))


def _contender(label: str, port: int, name: str, seconds: float, barrier: Barrier, results: Connection) -> None:
    acquire, release = CONTESTANTS[label](port, name)
    acquire()  # everything is opened and loaded once
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
        release()
        count += 1
        now = time.perf_counter()
    results.send((count, longest))


def ping_pong(port: int, seconds: float) -> float:
    """Messages a second between two processes that answer each other over pub/sub: two messages make an exchange."""
    ours, theirs = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_player, args=(port, b"pong", b"ping", seconds, theirs))
    process.start()
    threading.Thread(target=_player, args=(port, b"ping", b"pong", seconds, None), daemon=True).start()
    rate = ours.recv()
    process.join()
    assert isinstance(rate, float)
    return rate


def _player(port: int, listen: bytes, answer: bytes, seconds: float, results: Connection | None) -> None:
    inbox, wire = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
    for each in (inbox, wire):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inbox.sendall(b"SUBSCRIBE %b\r\n" % listen)
    inbox.recv(1024)
    ball = b"PUBLISH %b x\r\n" % answer
    if results is not None:
        reply = b""
        while b":1" not in reply:  # serve until the other one listens
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


def measure(port: int, labels: Iterable[str], processes: int, rounds: int, seconds: float) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {label: [] for label in labels}
    for _ in range(rounds):
        for label, done in runs.items():
            done.append(contend(label, port, processes, seconds))
    return runs


def table(processes: int, runs: dict[str, list[Run]], peer: str, messages: float | None = None) -> list[list[str]]:
    """One row for each; with the rate of bare messages, also as a share of that."""
    base = _median(runs[peer], lambda run: run.rate)
    title = f"hand-off, {processes} processes"
    wire = [] if messages is None else ["x ping-pong messages"]
    rows = [[title, "acquisitions/s", f"x {peer}", *wire, "longest wait", "busiest/idlest"]]
    for label, each in runs.items():
        rate = _median(each, lambda run: run.rate)
        rows.append(
            [
                label,
                f"{rate:.0f}",
                f"{rate / base:.2f}",
                *([] if messages is None else [f"{rate / messages:.2f}"]),
                f"{1000 * _median(each, lambda run: run.longest_wait):.1f} ms",
                f"{_median(each, lambda run: run.spread):.2f}",
            ]
        )
    return rows


def _median(runs: list[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(value(run) for run in runs)
