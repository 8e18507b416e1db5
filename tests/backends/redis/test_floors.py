"""The highest tokens that a client has seen.

There is one number for all locks, and one for each lock that was lifted above the server's clock.
"""

from __future__ import annotations

from fencedlock.backends.redis.floors import Floors

NOW_US = 1_795_000_000_000_000
HERE_US = 20_000_000
"""The same time as ``NOW_US``, by this process's clock."""


def test_tokens_of_the_server_s_clock_hold_for_all_locks() -> None:
    floors = Floors()
    floors.saw("a", NOW_US, NOW_US, HERE_US)
    floors.saw("b", NOW_US - 5, NOW_US, HERE_US)
    assert (floors.of("a", HERE_US), floors.of("b", HERE_US), floors.of("new", HERE_US)) == (
        NOW_US,
        NOW_US,
        NOW_US,
    )


def test_a_lifted_lock_lifts_no_other() -> None:
    floors = Floors()
    floors.saw("a", 2**52, NOW_US, HERE_US)
    floors.saw("b", NOW_US, NOW_US, HERE_US)
    assert (floors.of("a", HERE_US), floors.of("b", HERE_US)) == (2**52, NOW_US)
    floors.saw("a", 2**52 - 1, NOW_US, HERE_US)
    assert floors.of("a", HERE_US) == 2**52


def test_the_floor_of_a_lifted_lock_goes_on_with_the_clock_here_whatever_a_servers_clock_says() -> (
    None
):
    floors = Floors()
    floors.saw("a", NOW_US + 10**9, NOW_US, HERE_US)
    assert floors.of("a", HERE_US + 7) == NOW_US + 10**9 + 7
    # This token comes from a server whose clock is ten seconds behind.
    floors.saw("a", NOW_US + 10**9 + 8, NOW_US - 10**7, HERE_US + 8)
    assert floors.of("a", HERE_US + 9) == NOW_US + 10**9 + 9
