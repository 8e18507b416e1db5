"""The fence for state in the memory of this process."""

from __future__ import annotations

import gc
import threading

import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.memory import MonotonicFence

OLD, NEW = FencingToken("accounts/a", 5), FencingToken("accounts/a", 6)


def test_tokens_only_rise() -> None:
    fence = MonotonicFence()
    for token in (OLD, OLD, NEW, NEW):
        fence.check(token)
    with pytest.raises(StaleTokenError) as caught:
        fence.check(OLD)
    assert (caught.value.presented, caught.value.stored, caught.value.token) == (5, 6, OLD)
    fence.check(OLD, "another resource")
    with pytest.raises(ConfigurationError, match="guarded by lock"):
        fence.check(FencingToken("b", 9), "accounts/a")
    with pytest.raises(TypeError, match="FencingToken"):
        fence.check(5)  # type: ignore[arg-type]


def test_nobody_comes_between_a_guarded_check_and_its_body() -> None:
    fence, order = MonotonicFence(), []
    at_the_door = threading.Event()

    def next_holder() -> None:
        at_the_door.set()
        with fence.guard(NEW):
            order.append("new")

    with fence.guard(OLD):
        thread = threading.Thread(target=next_holder)
        thread.start()
        at_the_door.wait()
        with fence.guard(OLD):  # a guard can be nested, and another resource can be checked in it
            fence.check(NEW, "another resource")
        thread.join(0.05)
        order.append("old")
    thread.join()
    assert order == ["old", "new"]
    with pytest.raises(StaleTokenError), fence.guard(OLD):
        order.append("late")
    assert order == ["old", "new"]


def test_two_resources_do_not_wait_for_each_other() -> None:
    fence, entered = MonotonicFence(), threading.Event()

    def other() -> None:
        with fence.guard(FencingToken("b", 1)):
            entered.set()

    with fence.guard(OLD):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(20)
        thread.join()


def test_many_threads_leave_the_highest(name: str) -> None:
    fence, lost = MonotonicFence(), []

    def raise_it(values: range) -> None:
        for value in values:
            try:
                fence.check(FencingToken(name, value))
            except StaleTokenError as error:
                assert error.stored is not None
                lost.append(error.stored > value)

    threads = [
        threading.Thread(target=raise_it, args=[range(start, 4000, 4)]) for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(lost)
    with pytest.raises(StaleTokenError):
        fence.check(FencingToken(name, 3998))
    fence.check(FencingToken(name, 3999))


def test_guards_are_not_kept() -> None:
    fence = MonotonicFence()
    for number in range(100):
        with fence.guard(FencingToken(f"x{number}", 1)):
            pass
    gc.collect()
    assert len(fence._guards) == 0
