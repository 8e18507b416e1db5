"""Mutexes and events. An exception of a signal handler can't break them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fencedlock.runtime.interrupts import Event, InterruptibleMutex, make_mutex
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
