"""Each command of the simulated store does what a real server does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers import RedisServer

pytest.importorskip("lupa", reason="lupa is not installed")

from tests.simulation.redis_scripts import lua_scripts
from tests.simulation.redis_store import RedisStore

MOST_TTL_ERROR_MS = 60_000
_prefixes = itertools.count()

keys = st.sampled_from(["a", "b"])
fields = st.sampled_from(["f", "g", "h"])
texts = st.sampled_from(["", "1", "é", "1700000000000000"])
scores = st.sampled_from(["1", "2", "1700000000000000", "1700000000000001", "2.5"])
places = st.sampled_from(["0", "1", "-1", "2"])
ttls = st.sampled_from(["-1", "0", "500000", "900000"])

hashes = st.one_of(
    st.tuples(st.just("HSET"), fields, texts),
    st.tuples(st.just("HSET"), fields, texts, fields, texts),
    st.tuples(st.just("HGET"), fields),
    st.tuples(st.just("HMGET"), fields, fields),
    st.tuples(st.just("HDEL"), fields, fields),
    st.tuples(st.just("HLEN")),
    st.tuples(st.just("HINCRBY"), st.just("n"), st.sampled_from(["1", "-3"])),
)
lines = st.one_of(
    st.tuples(st.just("ZADD"), scores, fields),
    st.tuples(st.just("ZADD"), scores, fields, scores, fields),
    st.tuples(st.just("ZREM"), fields),
    st.tuples(st.just("ZSCORE"), fields),
    st.tuples(st.just("ZRANGE"), places, places),
    st.tuples(st.just("ZRANGE"), places, places, st.just("WITHSCORES")),
    st.tuples(st.just("ZPOPMIN")),
    st.tuples(st.just("ZPOPMAX")),
    st.tuples(st.just("ZREMRANGEBYSCORE"), st.just("-inf"), scores),
)
whole_keys = st.one_of(
    st.tuples(st.just("EXISTS")),
    st.tuples(st.just("DEL")),
    st.tuples(st.just("PEXPIRE"), ttls),
    st.tuples(st.just("PTTL")),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("hash"), st.one_of(hashes, whole_keys)),
        st.tuples(st.just("line"), st.one_of(lines, whole_keys)),
    ),
    max_size=30,
)


def script(calls: Any, prefix: str) -> str:
    """Return a script that makes these calls, and shows each reply."""
    made = []
    for key, (name, *arguments) in calls:
        words = ", ".join(f"[==[{word}]==]" for word in (name, f"{prefix}/{key}", *arguments))
        made.append(f"show(redis.call({words}))")
    return SHOW + "\n".join(made) + "\nreturn shown"


SHOW = """
local shown = {}
local function show(reply)
  if type(reply) == 'table' then
    table.insert(shown, 'a list of ' .. #reply)
    for _, each in ipairs(reply) do table.insert(shown, type(each) .. ' ' .. tostring(each)) end
  else
    table.insert(shown, type(reply) .. ' ' .. tostring(reply))
  end
end
"""


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations)
def test_the_same_calls_have_the_same_replies(server: RedisServer, calls: Any) -> None:
    text = script(calls, f"simulation/{next(_prefixes)}")
    now_us = 1_700_000_000_000_000
    store = RedisStore(lambda: now_us, lambda _channel, _message: 0, lambda _channel: 0)
    ours = lua_scripts().run(store, text.encode().decode("latin-1"), [], [])  # bytes, as in Redis
    with server.client() as raw:
        theirs = raw.eval(text, 0)
    for call, one, other in itertools.zip_longest(range(len(ours)), ours, theirs):
        if one != other:  # a time to live may be a little shorter by now
            assert (one[:7], other[:7]) == (b"number ", b"number "), (call, one, other)
            assert 0 <= int(one[7:]) - int(other[7:]) < MOST_TTL_ERROR_MS, (call, one, other)


def test_time_and_messages() -> None:
    sent: list[tuple[str, str]] = []

    def send(channel: str, message: str) -> int:
        sent.append((channel, message))
        return 2

    now_us = 1_700_000_000_000_042
    store = RedisStore(lambda: now_us, send, lambda _channel: 2)
    assert store.command("TIME") == ["1700000000", "42"]
    assert store.command("PUBSUB", "NUMSUB", "c") == ["c", 2]
    assert store.command("PUBLISH", "c", "m") == 2
    assert sent == [("c", "m")]


def test_keys_end_with_their_time() -> None:
    now_us = 0
    store = RedisStore(lambda: now_us, lambda _channel, _message: 0, lambda _channel: 0)
    store.command("HSET", "k", "f", "v")
    store.command("PEXPIRE", "k", "10")
    now_us = 10_000
    assert store.command("PTTL", "k") == 0
    assert store.command("HGET", "k", "f") == "v"
    now_us = 11_000
    assert store.command("PTTL", "k") == -2
    assert store.command("HGET", "k", "f") is None
