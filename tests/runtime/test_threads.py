"""Background threads. An exception of a signal handler can't keep them from running, and the end of
the interpreter waits for those that have not begun.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fencedlock.runtime import threads
from fencedlock.runtime.threads import Worker
from tests.conftest import eventually
from tests.interrupts import Interrupt, TimeLimit


def test_a_worker_begins_wherever_its_start_is_interrupted() -> None:
    for number in range(1, 100):
        began, go = threading.Event(), threading.Event()
        runs: list[int] = []

        def run(
            began: threading.Event = began, go: threading.Event = go, runs: list[int] = runs
        ) -> None:
            runs.append(1)
            began.set()
            go.wait(20)

        worker = Worker(run, "worker")
        interrupt = Interrupt(number, TimeLimit)
        try:
            interrupt.run(worker.start)
        except TimeLimit:
            worker.start()
        assert began.wait(20)
        worker.start()
        go.set()
        assert worker.wait(20)
        assert runs == [1]
        if not interrupt.came:
            break
    assert number > 1


def test_nobody_waits_for_a_worker_that_never_began() -> None:
    assert Worker(lambda: None, "worker").wait(20)


class Late:
    """Threads of the interpreter that begin when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_begin, self.asked, start = threading.Event(), 0, _thread.start_new_thread

        def late(run: Callable[..., object], arguments: tuple[Any, ...]) -> int:
            def begin() -> None:
                self.may_begin.wait()
                run(*arguments)

            self.asked += 1
            return start(begin, ())

        # What a worker calls, and not what threading.Thread calls.
        monkeypatch.setattr(threads, "_thread", SimpleNamespace(start_new_thread=late))
        monkeypatch.setattr(threads, "_ending", False)


def test_the_end_waits_for_threads_that_have_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    late, worked = Late(monkeypatch), threading.Event()
    worker = Worker(worked.set, "worker")
    worker.start()
    end = threading.Thread(target=threads.finish_births)
    end.start()
    eventually(lambda: threads._ending)
    end.join(0.2)
    assert end.is_alive()
    assert not worked.is_set()
    late.may_begin.set()
    end.join(20)
    assert not end.is_alive()
    assert worked.wait(20)
    assert not threads._births


@pytest.mark.parametrize("starter", ["main", "thread", "daemon thread"])
def test_at_the_end_a_worker_runs_when_its_start_returns(
    starter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, worked = Late(monkeypatch), threading.Event()
    late.may_begin.set()
    threads.finish_births()
    errors: list[BaseException] = []

    def start() -> None:
        try:
            Worker(worked.set, "worker").start()
        except RuntimeError as error:
            errors.append(error)
        assert not threads._births

    if starter == "main":
        start()
    else:
        other = threading.Thread(target=start, daemon="daemon" in starter)
        other.start()
        other.join(20)
    if starter == "daemon thread":  # it may be gone before the worker begins
        assert "the interpreter ends" in str(*errors)
        assert late.asked == 0
    else:
        assert not errors
        assert worked.wait(20)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_copy_does_not_wait_for_threads_that_its_original_was_about_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = Late(monkeypatch)
    Worker(lambda: None, "worker").start()
    assert threads._births
    threads._ending = True
    pid = os.fork()
    if pid == 0:
        os._exit(len(threads._births) + threads._ending)
    assert os.waitpid(pid, 0)[1] == 0
    late.may_begin.set()
    threads.finish_births()
    assert not threads._births
