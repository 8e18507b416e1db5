"""Threads are never confused, and their end is noticed even if something refers to their frames."""

from __future__ import annotations

import gc
import threading

from fencedlock.runtime.owners import Owner, this_thread


def test_a_dead_thread_is_dead_although_a_cycle_keeps_its_frames() -> None:
    owners: list[Owner] = []

    def fail() -> None:
        owner = this_thread.owner
        owners.append(owner)
        try:
            raise ValueError
        except ValueError as error:
            kept = error  # the frame keeps the error, whose traceback keeps the frame  # noqa: F841

    gc.disable()
    try:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        assert owners[0].alive() is False
    finally:
        gc.enable()


def test_threads_one_after_another_are_different_owners() -> None:
    numbers: list[int] = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: numbers.append(this_thread.owner.id))
        thread.start()
        thread.join()
    assert len(set(numbers)) == 20
    assert this_thread.owner is this_thread.owner
    assert this_thread.owner.alive()
