from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencedlock import ConfigurationError
from fencedlock.backends.redis.keys import keys_of, lock_key, name_of
from fencedlock.core.names import checked_namespace

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(names, names)
def test_two_names_never_share_a_key(one: str, two: str) -> None:
    if one != two:
        assert not set(keys_of(lock_key("ns", one))) & set(keys_of(lock_key("ns", two)))


@given(names)
def test_a_key_tells_its_name_and_has_one_hash_tag(name: str) -> None:
    key = lock_key("ns", name)
    assert name_of("ns", key) == name
    assert name_of("ns", f"{key}:queue") == name
    assert name_of("ns", f"{key}:fence") is None
    assert key.count("{") == key.count("}") == 1
    assert key.isprintable() or not name.isprintable()


@pytest.mark.parametrize("name", ["", None, 3, b"x", "x" * 4097, "\ud800"])
def test_what_can_not_be_a_name(name: object) -> None:
    with pytest.raises(ConfigurationError):
        lock_key("ns", name)  # type: ignore[arg-type]


@pytest.mark.parametrize("namespace", ["", "a{b", "x\n", None])
def test_what_can_not_be_a_namespace(namespace: object) -> None:
    with pytest.raises(ConfigurationError):
        checked_namespace(namespace)  # type: ignore[arg-type]
