"""Fencing tokens rise, whatever happens to the server, and stay the same while a lock is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fencedlock
from fencedlock import FencingToken
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import LockServer


def test_the_token_stays_the_same_by_reentry_nested_release_and_renewal(
    client: fencedlock.Client, name: str
) -> None:
    lock = client.RLock(name)
    with lock as token:
        with lock as nested:
            assert nested == token
        assert lock.token == token
        lock.renew()
        lock.renew(ttl=5)
        assert lock.token == token
        assert lock.info().token == int(token)
    with pytest.raises(fencedlock.NotOwnedError):
        _ = lock.token


def test_tokens_rise_from_hold_to_hold_and_from_owner_to_owner(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    tokens = []
    for _ in range(10):
        with client.RLock(name) as token:
            tokens.append(token)
        other.ask("acquire", name)
        tokens.append(other.ask("token", name))
        other.ask("release", name)
    assert tokens == sorted(set(tokens))


def test_tokens_rise_through_expiry(
    client: fencedlock.Client, contender: Callable[..., Contender], name: str
) -> None:
    doomed = contender("process", client)
    doomed.ask("make", name, ttl=0.3)
    doomed.ask("acquire", name)
    before = doomed.ask("token", name)
    doomed.kill()
    with client.RLock(name) as token:
        assert token > before
        assert client.RLock(name).abandoned is True
    with client.RLock(name):
        assert client.RLock(name).abandoned is False


def test_tokens_rise_through_force_release(
    client: fencedlock.Client, other: Contender, name: str
) -> None:
    lock = client.RLock(name)
    other.ask("make", name, ttl=1)
    other.ask("acquire", name)
    before = other.ask("token", name)
    assert client.force_release(name) == before
    assert client.force_release(name) is None
    with lock as token:
        assert token > before
        assert lock.abandoned is True
    assert other.ask("wait_lost", name, 10) is True
    with pytest.raises(fencedlock.LockLostError) as caught:
        other.ask("release", name)
    assert caught.value.token == before


def test_tokens_rise_when_the_server_forgets_the_lock(
    backend: LockServer, connect: Callable[..., fencedlock.Client], name: str
) -> None:
    client, stranger = connect(backend.url, ttl=2), connect(backend.url, ttl=2)
    lock = client.RLock(name)
    with lock as first:
        pass
    backend.wipe(name)  # while free
    with stranger.RLock(name) as second:
        assert second > first
    lock.acquire()
    third = lock.token
    assert third > second
    backend.wipe(name)  # while held
    with stranger.RLock(name) as fourth:
        assert fourth > third
    with pytest.raises(fencedlock.LockLostError):
        lock.release()


def test_large_tokens_are_written_as_whole_numbers(client: fencedlock.Client, name: str) -> None:
    with client.RLock(name) as token:
        info = client.inspect(name)
    assert int(token) == info.token == info.issued
    assert 0 < int(token) < 2**53
    assert str(token).isdigit()


@pytest.mark.parametrize("wait", [False, True])
def test_a_frozen_holder_knows_when_it_wakes_and_harms_nobody(
    wait: bool,
    server_kind: str,
    own_server: Callable[..., LockServer],
    connect: Callable[..., fencedlock.Client],
    contender: Callable[..., Contender],
) -> None:
    server = own_server(server_kind)
    client = connect(server.url, ttl=10)
    frozen = contender("process", client)
    frozen.ask("make", "x", ttl=0.5)
    frozen.ask("acquire", "x")
    frozen.ask("acquire", "x")
    old = frozen.ask("token", "x")
    frozen.freeze()
    lock = client.FairLock("x")
    assert lock.acquire(timeout=20)
    assert lock.abandoned is True
    assert lock.token > old
    before = lock.info()
    if not wait:
        server.freeze()  # the holder has to find out without the server
    frozen.thaw()
    with pytest.raises(fencedlock.LockLostError) as caught:
        frozen.ask("ensure_held", "x")
    assert caught.value.lock == "x"
    assert caught.value.token == old
    with pytest.raises(fencedlock.LockLostError):
        frozen.ask("acquire", "x")
    with pytest.raises(fencedlock.LockLostError):
        frozen.ask("renew", "x")
    for _ in range(2):
        with pytest.raises(fencedlock.LockLostError):
            frozen.ask("release", "x")
    with pytest.raises(fencedlock.NotOwnedError):
        frozen.ask("release", "x")
    if not wait:
        server.thaw()
    after = lock.info()
    assert (after.owner, after.token, after.count) == (before.owner, before.token, 1)
    assert after.remaining <= before.remaining
    lock.release()
    assert frozen.ask("acquire", "x") is True
    eventually(lambda: lock.info().locked)


class TestRaiseFloor:
    def test_the_next_token_is_greater_for_all_clients(
        self, client: fencedlock.Client, connect: Any, backend: LockServer, name: str
    ) -> None:
        with client.RLock(name) as token:
            floor = FencingToken(name, int(token) + 10**12)
        client.raise_floor(floor)
        lock = connect(backend.url).FairLock(name)
        with lock as after:
            assert after > floor
            assert not lock.abandoned, "a gap is no abandoned hold"
        client.raise_floor(token)
        with client.RLock(name) as later:
            assert later > after, "a floor is never lowered"

    def test_a_hold_keeps_its_token_and_its_successor_gets_a_greater_one(
        self, client: fencedlock.Client, other: Contender, name: str
    ) -> None:
        lock = client.FairLock(name)
        with lock as token:
            other.tell("acquire", name)
            eventually(lambda: client.inspect(name).waiters)
            client.raise_floor(FencingToken(name, int(token) + 10**12))
            lock.renew()
            assert lock.token == token
        assert other.answer() is True
        assert int(other.ask("token", name)) > int(token) + 10**12
        assert other.ask("abandoned", name) is False
        other.ask("release", name)

    def test_of_a_lock_that_was_never_used(
        self, client: fencedlock.Client, backend: LockServer, name: str
    ) -> None:
        floor = FencingToken(name, 2**52)
        client.raise_floor(floor)
        assert backend.leftovers(name) == set()
        lock = client.RLock(name)
        with lock as token:
            assert token > floor
            assert not lock.abandoned

    def test_it_is_of_one_lock_only(self, client: fencedlock.Client, name: str) -> None:
        client.raise_floor(FencingToken(f"{name}/high", 2**52))
        with client.RLock(f"{name}/high"), client.RLock(name) as token:
            assert int(token) < 2**51

    def test_it_does_not_make_a_lost_hold_a_released_one(
        self, client: fencedlock.Client, backend: LockServer, name: str
    ) -> None:
        lock = client.RLock(name)
        with pytest.raises(fencedlock.LockLostError), lock as token:
            backend.wipe(name)
            client.raise_floor(FencingToken(name, int(token) + 5))
        with lock as later:
            assert int(later) > int(token) + 5

    @pytest.mark.parametrize("wrong", [2**52 + 1, -1, True, 1.5, "12"], ids=repr)
    def test_what_leaves_no_room_is_refused(
        self, client: fencedlock.Client, wrong: Any, name: str
    ) -> None:
        with pytest.raises(fencedlock.ConfigurationError, match="floor"):
            client.raise_floor(FencingToken(name, wrong))
        with pytest.raises(TypeError, match="FencingToken"):
            client.raise_floor(5)  # type: ignore[arg-type]
