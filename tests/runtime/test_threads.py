"""Events, mutexes and threads. An exception of a signal handler can't break them."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fencedlock.runtime import threads
from fencedlock.runtime.threads import Event, InterruptibleMutex, Worker, make_mutex
from tests.conftest import eventually
from tests.interrupts import Interrupt, TimeLimit

SECONDS = 0.5

where_it_can_be = pytest.mark.skipif(
    not hasattr(threading.RLock(), "_recursion_count"),
    reason="this old patch release has no RLock._recursion_count, and needs no such mutex",
)


@pytest.mark.parametrize(
    "make", [make_mutex, pytest.param(InterruptibleMutex, marks=where_it_can_be)]
)
def test_no_interrupt_leaves_a_mutex_taken(make: Callable[[], Any]) -> None:
    mutex, interrupts, ending = make(), 0, threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise TimeLimit

    def send() -> None:
        while not ending.wait(0.0001):
            signal.pthread_kill(main, signal.SIGUSR1)

    before, thread, until = (
        signal.signal(signal.SIGUSR1, handler),
        threading.Thread(target=send),
        time.monotonic() + SECONDS,
    )
    thread.start()
    try:
        while time.monotonic() < until or interrupts <= 10:
            try:
                armed = True
                while True:
                    with mutex:
                        pass
                    with mutex, mutex:
                        pass
            except TimeLimit:
                interrupts += 1
            assert not mutex._is_owned()
    finally:
        ending.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@where_it_can_be
def test_no_place_of_its_entry_leaves_a_mutex_taken() -> None:
    mutex = InterruptibleMutex()

    def enter() -> None:
        with mutex, mutex:
            pass

    for number in range(1, 100):
        interrupt = Interrupt(number, TimeLimit)
        try:
            interrupt.run(enter)
        except TimeLimit:
            pass
        assert not mutex._is_owned()
        if not interrupt.came:
            break
    assert number > 2


@where_it_can_be
def test_a_mutex_keeps_others_out_and_lets_its_thread_in_again() -> None:
    mutex = InterruptibleMutex()
    with mutex, mutex:
        thread_got: list[bool] = []
        thread = threading.Thread(target=lambda: thread_got.append(mutex.acquire(False)))
        thread.start()
        thread.join()
        assert thread_got == [False]
        assert mutex._is_owned()
    assert not mutex._is_owned()


def test_an_event_wakes_all_who_wait() -> None:
    event, woken = Event(), []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(20))) for _ in range(5)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(event._sleepers) == 5)
    assert not event.is_set()
    event.set()
    event.clear()  # the threads that were woken stay awake
    for thread in threads:
        thread.join()
    assert woken == [True] * 5
    assert event.wait(0) is False
    assert event.wait(-1) is False
    event.set()
    assert event.wait() is True


def test_no_place_of_an_event_s_wait_keeps_others_from_setting_it() -> None:
    event = Event()
    for number in range(1, 100):
        interrupt = Interrupt(number, TimeLimit)
        try:
            interrupt.run(lambda: event.wait(0.001))
        except TimeLimit:
            pass
        assert event._sleepers == set()
        if not interrupt.came:
            break
    assert number > 2
    event.set()


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
        monkeypatch.setattr(threads, "_last_thread", 0)


def test_the_end_waits_for_threads_that_have_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    late, worked = Late(monkeypatch), threading.Event()
    worker = Worker(worked.set, "worker")
    worker.start()
    end = threading.Thread(target=threads.finish_births)
    end.start()
    eventually(lambda: threads._last_thread == end.ident)
    end.join(0.2)
    assert end.is_alive()
    assert not worked.is_set()
    late.may_begin.set()
    end.join(20)
    assert not end.is_alive()
    assert worked.wait(20)
    assert not threads._births


def test_only_the_thread_that_ends_the_interpreter_starts_workers_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, worked = Late(monkeypatch), threading.Event()
    late.may_begin.set()
    threads.finish_births()
    Worker(worked.set, "worker").start()
    assert not threads._births  # so it has begun
    errors: list[BaseException] = []

    def start() -> None:
        try:
            Worker(worked.set, "worker").start()
        except RuntimeError as error:
            errors.append(error)

    other = threading.Thread(target=start)
    other.start()
    other.join(20)
    assert "the interpreter ends" in str(*errors)
    assert late.asked == 1
    assert not threads._births
    assert worked.wait(20)


def test_a_copy_does_not_wait_for_threads_that_its_original_was_about_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = Late(monkeypatch)
    Worker(lambda: None, "worker").start()
    assert threads._births
    pid = os.fork()
    if pid == 0:
        os._exit(len(threads._births))
    assert os.waitpid(pid, 0)[1] == 0
    late.may_begin.set()
    threads.finish_births()
    assert not threads._births
