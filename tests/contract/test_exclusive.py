"""The decorator ``exclusive`` on functions and coroutine functions."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock import exclusive
from tests.contenders import Contender


@pytest.fixture(params=["function", "coroutine function"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(shape: str, body: Callable[..., Any], name: str, **options: Any) -> Callable[..., Any]:
    """Return a function that calls the decorated body, and that has the body's one parameter."""
    if shape == "function":

        def function(number: int = 0) -> Any:
            return body(number)

        return exclusive(name, **options)(function)

    async def coroutine(number: int = 0) -> Any:
        return body(number)

    decorated = exclusive(name, **options)(coroutine)

    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(decorated(*args, **kwargs))

    return run


def test_a_call_holds_the_lock_that_its_arguments_name(
    shape: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    def body(number: int) -> Any:
        fencedlock.assert_held(f"{name}/5")
        assert other.ask("acquire", f"{name}/5", False) is False
        assert other.ask("acquire", f"{name}/6", False) is True
        return number

    call = made(shape, body, f"{name}/{{number}}", client=client)
    assert call(number=5) == 5
    assert other.ask("acquire", f"{name}/5", False) is True


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_a_busy_call_is_skipped_raises_or_waits(
    timeout: float | None, shape: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    calls: list[int] = []
    skip = made(shape, calls.append, name, busy="skip", timeout=timeout, client=client)
    refuse = made(shape, calls.append, name, busy="raise", timeout=timeout, client=client)
    wait = made(shape, calls.append, name, timeout=timeout, client=client)
    assert other.ask("acquire", name)
    assert skip(1) is None
    with pytest.raises(fencedlock.AcquireTimeoutError, match="was not free within"):
        refuse(2)
    if timeout is not None:
        with pytest.raises(fencedlock.AcquireTimeoutError, match=r"was not free within 1 s"):
            wait(3)
    assert calls == []
    waiter = threading.Thread(target=made(shape, calls.append, name, client=client), args=(4,))
    waiter.start()
    while not client.inspect(name).waiters:
        time.sleep(0.001)
    other.ask("release", name)
    waiter.join()
    for call in (skip, refuse, wait):
        call(5)
    assert calls == [4, 5, 5, 5]


def test_a_time_out_of_the_body_is_no_busy_lock(
    shape: str, client: fencedlock.Client, name: str
) -> None:
    def body(_: int) -> None:
        raise fencedlock.AcquireTimeoutError("of another lock")

    with pytest.raises(fencedlock.AcquireTimeoutError, match="of another lock"):
        made(shape, body, name, busy="skip", client=client)()
    assert not client.inspect(name).locked


@pytest.mark.parametrize("fails", [False, True])
def test_the_lock_stays_closed_for_at_least_so_long(
    fails: bool, shape: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    def body(_: int) -> None:
        if fails:
            raise KeyError

    call = made(shape, body, name, busy="skip", at_least=2, client=client)
    begun = time.monotonic()
    if fails:
        with pytest.raises(KeyError):
            call()
    else:
        call()
    assert other.ask("acquire", name, False) is False or time.monotonic() - begun > 2
    assert other.ask("acquire", name) is True
    assert time.monotonic() - begun > 1.9


def test_a_long_body_needs_no_more_time(
    shape: str, client: fencedlock.Client, other: Contender, name: str
) -> None:
    made(shape, lambda _: time.sleep(0.02), name, at_least=0.01, client=client)()
    assert other.ask("acquire", name, False) is True


def test_a_function_may_call_itself(client: fencedlock.Client, name: str) -> None:
    @exclusive(name, client=client, at_least=0.001)
    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else 1

    assert factorial(5) == 120

    @exclusive(name, client=client)
    async def task_factorial(number: int) -> int:
        return number * await task_factorial(number - 1) if number else 1

    assert asyncio.run(task_factorial(5)) == 120
    assert factorial.__name__ == "factorial"
    assert inspect.iscoroutinefunction(task_factorial)


def test_the_default_client_is_that_of_the_call(
    shape: str, client: fencedlock.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = made(shape, lambda _: client.inspect(name).locked, name)
    with pytest.raises(fencedlock.ConfigurationError, match="FENCEDLOCK_URL"):
        call()
    monkeypatch.setattr("fencedlock.runtime.home._find_default", lambda: client)
    assert call() is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"busy": "ignore"}, "busy must be one of wait, skip, raise"),
        ({"timeout": -3}, "timeout must be a time in seconds"),
        ({"timeout": "5"}, "timeout must be a time in seconds"),
        ({"at_least": -1}, "at_least"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(fencedlock.ConfigurationError, match=words):
        exclusive("x", **arguments)


def test_functions_that_would_run_without_the_lock_are_refused() -> None:
    with pytest.raises(fencedlock.ConfigurationError, match="is a generator"):

        @exclusive("x")
        def generate() -> Any:
            yield

    with pytest.raises(fencedlock.ConfigurationError, match="only parameters of"):

        @exclusive("x/{other}")
        def function(number: int) -> None:
            pass
