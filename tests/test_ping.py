"""client.ping() sends one request, waits for its answer and returns the time that it took."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import fencedlock
from tests.servers import LockServer


def test_it_tells_the_round_trip(
    backend: LockServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(backend.url)
    began = time.monotonic()
    first, second = client.ping(), client.ping()
    assert isinstance(second, float)
    assert second > 0
    assert first + second <= time.monotonic() - began


def test_a_silent_server_is_unavailable_within_the_socket_timeout(
    backend: LockServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(backend.url, socket_timeout=0.3)
    client.ping()
    backend.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(fencedlock.BackendUnavailableError):
            client.ping()
        assert time.monotonic() - began < 2
    finally:
        backend.thaw()
    assert client.ping() > 0


def test_a_closed_client_does_not_ask(
    backend: LockServer, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(backend.url)
    client.close()
    with pytest.raises(fencedlock.ConfigurationError, match="closed"):
        client.ping()
