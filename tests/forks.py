"""Forks of this process, made by Python or by libc's fork(), of which Python does not know."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fencedlock.backends.etcd.connections import GRPC_THREADS
from fencedlock.clock import now_seconds

libc = ctypes.PyDLL(None, use_errno=True)
"""The C library. Calls through PyDLL keep the GIL, so the copy holds it, as in uWSGI."""


def _switches() -> dict[str, list[str]]:
    """Return, for each other thread that runs Python code, how often it was given a processor.

    And its state, because on a busy machine a thread that wants to run may wait for a processor.
    """
    counts = {}
    # In a PID namespace, the numbers of threads in /proc differ from their native ids.
    me = Path("/proc/thread-self").readlink().name
    for task in Path("/proc/self/task").iterdir():
        if task.name != me:
            try:
                if not (task / "comm").read_text().startswith(GRPC_THREADS):
                    counts[task.name] = [
                        line
                        for line in (task / "status").read_text().splitlines()
                        if "ctxt" in line or line.startswith("State:")
                    ]
            except OSError:
                pass  # the thread has just ended
    return counts


def _lines(switches: dict[str, list[str]]) -> list[str]:
    return [line for lines in switches.values() for line in lines]


def settle(until: float = float("inf")) -> dict[str, list[str]] | None:
    """Wait until every other thread has slept for a while. Return how often each had a processor.

    Return None if that has not happened by this local time.
    """
    if not Path("/proc/self/task").exists():
        time.sleep(0.1)
        return {}
    before = None
    while before != (now := _switches()) or any("(running)" in line for line in _lines(now)):
        if now_seconds() >= until:
            return None
        before = now
        time.sleep(0.02)
    return now


def fork_in_c(until: float = float("inf")) -> int:
    """Fork while every other thread sleeps. Return the process id of the child, 0 in the child, or
    -1 if the others did not all sleep by this local time.

    If another thread has just woken and waits for the GIL, the interpreter of the copy waits for
    that thread forever, sooner or later. This is a limitation of CPython, not of the library.
    Therefore a copy goes on only when its original has seen that no other thread was given a
    processor meanwhile.
    """
    while (quiet := settle(until)) is not None:
        there, here = os.pipe()
        pid = int(libc.fork())
        if pid == 0:
            os.close(here)
            if os.read(there, 1):
                os.close(there)
                return 0
            os._exit(0)
        is_sound = not quiet or quiet == _switches()
        if is_sound:
            os.write(here, b"!")
        os.close(there)
        os.close(here)
        if is_sound:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return -1


def fork_in_python() -> int:
    settle()
    return os.fork()


FORKS: dict[str, Callable[[], int]] = {"C": fork_in_c, "Python": fork_in_python}
