"""Keys, values, floors and settings. The tests are pure, and need no server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencedlock import BackendError, ConfigurationError
from fencedlock.backends.etcd.floors import FloorHistory
from fencedlock.backends.etcd.keys import after, lock_keys, locks_prefix, name_of
from fencedlock.backends.etcd.settings import Settings, settings_of_url
from fencedlock.backends.etcd.values import Holder, first_values_of, holder_value, read_holder

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(names, names)
def test_two_names_never_share_a_key_and_prefixes_are_kept(one: str, two: str) -> None:
    keys = lock_keys("ns", one)
    assert keys.floor < keys.grant < keys.holder < keys.queue < keys.queue_end <= keys.withdrawn
    assert name_of("ns", keys.holder) == name_of("ns", keys.place_of("a/1/1", 2)) == one
    assert name_of("ns", keys.grant) is None
    if one != two:
        assert keys != lock_keys("ns", two)
        own = locks_prefix("ns", two) + b"/"
        assert not keys.holder.startswith(own)
    start = locks_prefix("ns", one)
    assert start <= lock_keys("ns", one + two).holder < after(start)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 1000))
def test_a_later_operation_has_a_greater_value(one: int, two: int, depth: int) -> None:
    values = [holder_value(operation, "c/1/1", depth, "host/1/1", 7) for operation in (one, two)]
    assert (values[0] < values[1]) == (one < two)
    assert read_holder(values[0]) == Holder(one, "", "c/1/1", depth, "host/1/1", 7)
    first, last = first_values_of("c/1/1")
    assert (first < values[0] < last) == (one == 0)
    assert not first < holder_value(0, "c/1/11", depth, "h", 7) < last


@pytest.mark.parametrize("value", [b"", b"x", b"1 2 x 4", b"\xff \xff 1 x"])
def test_a_holder_that_is_none(value: bytes) -> None:
    with pytest.raises(BackendError):
        read_holder(value)


@given(st.lists(st.integers(1, 10**15), max_size=4), st.integers(1, 1000))
def test_floors_keep_the_tokens_of_holds_and_raise_the_next(
    additions: list[int], revision: int
) -> None:
    floors = FloorHistory.read(None)
    tokens = []
    total = 0
    for addition in additions:
        tokens.append((revision, floors.token_of(revision)))
        total += addition
        revision += 1
        floors = FloorHistory.read(
            SimpleNamespace(key=b"k", value=floors.raised_by(total), mod_revision=revision)
        )
        revision += 1
    tokens.append((revision, floors.token_of(revision)))
    for granted_at, token in tokens:
        assert floors.token_of(granted_at) == token
        assert floors.revision_of(token) == granted_at
    assert [token for _, token in tokens] == sorted({token for _, token in tokens})


def test_what_is_no_floor() -> None:
    with pytest.raises(BackendError, match="not a floor"):
        FloorHistory.read(SimpleNamespace(key=b"k", value=b"1 x", mod_revision=1))


def test_urls(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    assert settings_of_url("etcd://a,b:1,[::1]:2").endpoints == ("a:2379", "b:1", "[::1]:2")
    assert settings_of_url("etcd://joe:s%40@a") == Settings(("a:2379",), user="joe", password="s@")
    assert settings_of_url(f"etcds://a?ca={file}") == Settings(("a:2379",), tls=True, ca=str(file))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("etcd://", "no endpoint"),
        ("etcd://a,", "no endpoint"),
        ("etcd://a:x", "invalid host"),
        ("etcd://a:99999", "invalid host"),
        ("etcd://a b", "invalid host"),
        ("etcd://a/path", "no path"),
        ("etcd://joe@a", "user and a password"),
        ("etcd://:secret@a", "user and a password"),
        ("etcd://a?ca=/x", "etcds://"),
        ("etcds://a?tls=1", "etcds:// takes"),
        ("etcds://a?ca=/nowhere", "is no file"),
        ("etcds://a?cert=/x", "both"),
    ],
)
def test_wrong_urls(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        settings_of_url(url)
