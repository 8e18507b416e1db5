"""Limits and shapes of a hold: max_hold, within(), owned(), depth, assert_held() and requires()."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import fencedlock
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer


class TestMaxHold:
    @pytest.mark.parametrize("cls", ["RLock", "FairLock", "Lock"])
    @pytest.mark.parametrize("max_hold", [1.0, 1.2, 2.5])
    def test_a_hold_ends_then_and_says_why(
        self,
        cls: str,
        max_hold: float,
        connect: Callable[..., fencedlock.Client],
        backend: LockServer,
        name: str,
    ) -> None:
        reasons: list[str] = []
        client = connect(backend.url, ttl=1, on_lost=lambda _, reason: reasons.append(reason))
        lock = getattr(client, cls)(name, max_hold=max_hold)
        other = connect(backend.url, ttl=10).RLock(name)
        begun = time.monotonic()
        lock.acquire()
        acquired = time.monotonic()
        assert lock.lost.wait(60)
        assert time.monotonic() - begun > max_hold - 0.4
        assert "max_hold" in eventually(lambda: reasons)[0]
        with pytest.raises(fencedlock.LockLostError, match="max_hold"):
            lock.release()
        assert other.acquire(timeout=60)
        assert acquired - begun < 60
        other.release()

    def test_it_limits_a_hold_that_was_handed_over_too(
        self,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        backend: LockServer,
        name: str,
    ) -> None:
        limited = connect(backend.url, ttl=2).FairLock(name, max_hold=2)
        got = threading.Event()

        def wait() -> None:
            limited.acquire()
            got.set()
            assert limited.lost.wait(60)
            with pytest.raises(fencedlock.LockLostError, match="max_hold"):
                limited.release()

        with client.FairLock(name):
            thread = threading.Thread(target=wait)
            thread.start()
            eventually(lambda: client.inspect(name).waiters)
        assert got.wait(60)
        begun = time.monotonic()
        thread.join()
        assert time.monotonic() - begun > 1

    def test_a_hold_that_is_released_in_time_is_not_touched(
        self, client: fencedlock.Client, name: str
    ) -> None:
        with client.RLock(name, ttl=1, max_hold=1) as token:
            assert token
        with client.RLock(name, ttl=1, max_hold=60) as later:
            time.sleep(1.5)
        assert later > token

    @pytest.mark.parametrize("wrong", [0.5, -1, "1", True, float("nan")])
    def test_a_wrong_one_is_refused(self, client: fencedlock.Client, name: str, wrong: Any) -> None:
        with pytest.raises(fencedlock.ConfigurationError, match="max_hold must be a number"):
            client.RLock(name, ttl=1, max_hold=wrong)


class TestWithin:
    def test_it_gives_the_token_of_a_free_lock(
        self, client: fencedlock.Client, other: Contender, name: str
    ) -> None:
        lock = client.RLock(name)
        with lock.within(5) as token, lock.within(5) as same:
            assert token == same == lock.token
            assert lock.depth == 2
            assert other.ask("acquire", name, False) is False
        assert other.ask("acquire", name) is True

    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_a_lock_that_is_not_free_in_time_is_an_error(
        self, timeout: float, client: fencedlock.Client, other: Contender, name: str
    ) -> None:
        other.ask("acquire", name)
        lock = client.Lock(name)
        with (
            pytest.raises(TimeoutError, match="was not free within") as caught,
            lock.within(timeout),
        ):
            pytest.fail("it was inside")
        assert isinstance(caught.value, fencedlock.AcquireTimeoutError)
        assert caught.value.lock == name
        assert client.inspect(name).waiters == ()

    @pytest.mark.parametrize("wrong", [-2, float("nan")])
    def test_wrong_timeouts_are_refused(
        self, client: fencedlock.Client, name: str, wrong: float
    ) -> None:
        with pytest.raises(ValueError, match=r"timeout|NaN"):
            client.RLock(name).within(wrong)


def test_who_owns_it_and_how_deep(client: fencedlock.Client, name: str) -> None:
    lock, seen = client.RLock(name), []
    assert (lock.owned(), lock.depth) == (False, 0)
    with lock, lock:
        assert (lock.owned(), lock.depth) == (True, 2)
        thread = threading.Thread(target=lambda: seen.append((lock.owned(), lock.depth)))
        thread.start()
        thread.join()
    assert seen == [(False, 0)]
    assert (lock.owned(), lock.depth) == (False, 0)
    handle = client.Lock(name)
    with handle:
        assert (handle.owned(), handle.depth) == (True, 1)
        assert (client.Lock(name).owned(), lock.owned()) == (False, False)


class TestRequires:
    def test_what_runs_without_the_lock_is_refused(
        self, client: fencedlock.Client, name: str
    ) -> None:
        @fencedlock.requires(name + "/{order.id}/{part}")
        def change(order: Any, part: int = 1) -> int:
            return part + 1

        order = SimpleNamespace(id=42)
        words = re.escape(f"does not hold lock '{name}/42/1'")
        with pytest.raises(fencedlock.NotOwnedError, match=words):
            change(order)
        with client.RLock(f"{name}/42/1"):
            assert change(order) == 2
            with pytest.raises(fencedlock.NotOwnedError):
                change(order, part=2)
            seen: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    change(order)
                except fencedlock.NotOwnedError as error:
                    seen.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert len(seen) == 1
        with pytest.raises(fencedlock.NotOwnedError):
            fencedlock.assert_held(f"{name}/42/1")
        with client.Lock(f"{name}/42/2"):
            assert change(order, part=2) == 3

    def test_coroutine_functions_too(self, client: fencedlock.Client, name: str) -> None:
        @fencedlock.requires(name)
        async def change() -> str:
            return "changed"

        async def main() -> str:
            with pytest.raises(fencedlock.NotOwnedError, match="this task does not hold"):
                await change()
            with client.RLock(name):
                return await change()

        assert asyncio.run(main()) == "changed"

    def test_a_lost_lease_does_not_count(self, client: fencedlock.Client, name: str) -> None:
        lock = client.RLock(name)
        with pytest.raises(fencedlock.LockLostError), lock:
            client.force_release(name)
            with pytest.raises(fencedlock.LockLostError):
                lock.renew()
            with pytest.raises(fencedlock.LockLostError):
                fencedlock.assert_held(name)

    def test_a_lost_hold_of_one_client_does_not_hide_that_of_another(
        self,
        client: fencedlock.Client,
        connect: Callable[..., fencedlock.Client],
        backend: LockServer,
        name: str,
    ) -> None:
        one, other = client.RLock(name), connect(backend.url, ttl=10).RLock(name)
        passed: list[fencedlock.FencingToken] = []
        for first, second in (
            (one, other),
            (other, one),
        ):  # whichever is looked at before the other
            with pytest.raises(fencedlock.LockLostError), first:
                client.force_release(name)
                with pytest.raises(fencedlock.LockLostError):
                    first.renew()
                with second as token:
                    fencedlock.assert_held(name)
                    passed.append(token)
        assert len(passed) == 2

    @pytest.mark.parametrize("wrong", ["x/{nobody}", "x/{", "x/{}", "x/{0}"])
    def test_a_name_with_other_fields_is_refused_when_the_function_is_made(
        self, wrong: str
    ) -> None:
        with pytest.raises(fencedlock.ConfigurationError, match="must have only parameters"):

            @fencedlock.requires(wrong)
            def change(order: int) -> None: ...
