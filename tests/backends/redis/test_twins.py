"""Each fast path does the same as the general path, on generated states.

docs/architecture.rst lists the fast paths.

``FENCEDLOCK_EXAMPLES=10000 pytest tests/backends/redis/test_twins.py`` tries more states than the
usual run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fencedlock
from fencedlock.backends.redis import server_time
from fencedlock.backends.redis.backend import RedisBackend
from fencedlock.backends.redis.keys import keys_of, lock_key
from fencedlock.backends.redis.scripts import scripts_of
from fencedlock.backends.redis.wire import Wire
from fencedlock.clock import now_seconds
from fencedlock.core.claims import Claim
from fencedlock.runtime.owners import this_thread
from tests.servers import RedisServer

EXAMPLES = int(os.environ.get("FENCEDLOCK_EXAMPLES", "300"))
MUTANT_EXAMPLES = 2000
"""The number of states in which a mutant has to be caught."""

NOW_US = 1_700_000_000_000_123
PERIOD_US = 86_400_000_000
TTL_TOLERANCE_MS = 500
CLIENTS = ("listens", "silent")

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

Keys = tuple[str, ...]

pytestmark = pytest.mark.timeout(600)  # enough for many examples on a busy machine


WHOLE_SECONDS = """
local function whole_seconds(key)
  local left_ms = redis.call('PTTL', key)
  return left_ms < 0 and left_ms or math.ceil(left_ms / 1000) * 1000
end
"""


def at_that_time(text: str) -> str:
    """Return the script for a server whose clock stands still.

    What is left of a lease is rounded up to whole seconds.
    """
    assert "call('TIME')" in text
    seconds, micros = divmod(NOW_US, 1_000_000)
    text = text.replace("call('TIME')", f"{{ '{seconds}', '{micros}' }}")
    return WHOLE_SECONDS + text.replace("call('PTTL', ", "whole_seconds(")


def without(text: str, *conditions: tuple[str, str]) -> str:
    """Return the script with these parts replaced, for example conditions of fast paths."""
    for old, new in conditions:
        assert old in text, old
        text = text.replace(old, new)
    return text


ACQUIRE = at_that_time(scripts_of().acquire.text)
RELEASE = at_that_time(scripts_of().release.text)
GENERAL_ACQUIRE = without(
    ACQUIRE, ("and now_us < issued - issued", "and false and now_us < issued - issued")
)
GENERAL_RELEASE = without(
    RELEASE,
    ("if ours and not first[1] and ARGV[3] == '0' then", "if false then"),
    ("if ours and ARGV[3] == '0' and call('HLEN', lock) == 3 then", "if false then"),
)

# --- states

around_now = st.sampled_from(
    [
        NOW_US - 2 * PERIOD_US,
        NOW_US - 5000,
        NOW_US - 5000,
        NOW_US - 1,
        NOW_US,
        NOW_US + 1,
        NOW_US + PERIOD_US,
    ]
)
claims = st.sampled_from([f"{client}/1/{number}" for client in CLIENTS for number in range(3)])
spans_ms = st.sampled_from([10_000, 10_000, 10_000, 1_000, 300])
since_us = st.sampled_from([-1000, -1000, -2_000_000, -20_000_000, 0, 500])
waiter = st.tuples(since_us, spans_ms, st.sampled_from([0, 0, NOW_US - 1, NOW_US + 7]))


def rarely(draw: st.DrawFn) -> bool:
    return draw(st.sampled_from([False] * 5 + [True]))


@st.composite
def states(draw: st.DrawFn, *, held: bool | None = None) -> dict[str, Any]:
    """Draw the values of a lock's keys, as the scripts can leave them."""
    issued = draw(around_now) if rarely(draw) else NOW_US - 5000
    ahead = 9_000_000 if rarely(draw) else None
    if ahead is not None and draw(st.booleans()):
        issued = max(issued, NOW_US + 100)
    is_held = draw(st.booleans()) if held is None else held
    lock = None
    if is_held:
        lock = {"owner": draw(claims), "token": issued, "holder": "30000 host/1/1"}
        if (ahead is not None and issued < NOW_US) or rarely(draw):
            lock["ahead"] = ahead or 0
        if rarely(draw):
            lock["count"] = 2
    fence: dict[str, int] | None = None
    if is_held or not rarely(draw):
        fence = {"issued": issued}
        if not rarely(draw):
            fence["ended"] = issued - 3 if is_held else issued
        if ahead is not None:
            fence["ahead"] = ahead
    least = draw(st.sampled_from([1, 1, 1, 0])) if is_held or rarely(draw) else 0
    waiting = draw(
        st.dictionaries(
            claims, waiter, min_size=least, max_size=least + draw(st.sampled_from([0, 0, 1, 2]))
        )
    )
    return {
        "lock": lock,
        "fence": fence,
        "waiters": {
            claim: f"{NOW_US + since} {span} {floor} 30000 host/2/{number}"
            for number, (claim, (since, span, floor)) in enumerate(waiting.items())
        },
        "queue": {claim: NOW_US - 100 + number for number, claim in enumerate(waiting)},
        "withdrawn": {draw(claims): NOW_US + 1000} if rarely(draw) else {},
        "lease_left_ms": draw(st.sampled_from([20_000, 60_000])),
    }


class Twins:
    """Runs two scripts on equal states of one lock, in one transaction, and reads what each did."""

    def __init__(self, raw: Any, inbox: Any, name: str) -> None:
        self._raw = raw
        self._inbox = inbox
        self._keys: Keys = keys_of(lock_key("fencedlock", name))

    def outcomes(
        self, scripts: tuple[str, str], state: dict[str, Any], arguments: list[Any]
    ) -> list[tuple[Any, ...]]:
        """Return the outcome of each script.

        It consists of the script's answer, the values of the keys, their TTLs, and the messages
        that the script has sent.
        """
        with self._raw.pipeline(transaction=True) as pipe:
            for script in scripts:
                self._restore(pipe, state)
                pipe.eval(script, len(self._keys), *self._keys, *arguments)
                self._read(pipe)
            replies = pipe.execute(raise_on_error=False)
        half = len(replies) // 2
        found = []
        for answers in (replies[:half], replies[half:]):
            left = answers[-10:]
            found.append((answers[-11], left[:5], left[5:]))
        messages = self._messages()
        each = len(messages) // 2
        return [
            (*one, messages[:each] if number == 0 else messages[each:])
            for number, one in enumerate(found)
        ]

    def _restore(self, pipe: Any, state: dict[str, Any]) -> None:
        lock, queue, waiters, fence, withdrawn = self._keys
        pipe.delete(*self._keys)
        for key, hash_ in (
            (lock, state["lock"]),
            (fence, state["fence"]),
            (waiters, state["waiters"]),
        ):
            if hash_:
                pipe.hset(key, mapping=hash_)
                pipe.pexpire(key, state["lease_left_ms"])
        for key, zset in ((queue, state["queue"]), (withdrawn, state["withdrawn"])):
            if zset:
                pipe.zadd(key, zset)
                pipe.pexpire(key, state["lease_left_ms"])

    def _read(self, pipe: Any) -> None:
        lock, queue, waiters, fence, withdrawn = self._keys
        for key in (lock, waiters, fence):
            pipe.hgetall(key)
        for key in (queue, withdrawn):
            pipe.zrange(key, 0, -1, withscores=True)
        for key in self._keys:
            pipe.pttl(key)

    def _messages(self) -> list[bytes]:
        """Return the messages that came to the inbox.

        A last message, sent from here, shows that all earlier ones have come.
        """
        self._raw.publish("fencedlock:inbox:listens", "the end")
        messages: list[bytes] = []
        while True:
            message = self._inbox.get_message(timeout=20)
            assert message is not None
            if message["data"] == b"the end":
                return messages
            messages.append(message["data"])


def assert_equal(outcomes: list[tuple[Any, ...]], arguments: list[Any], lease_ms: int) -> None:
    (fast, fast_left, fast_ttls, fast_messages), (general, left, ttls, messages) = outcomes
    if isinstance(fast, int):  # the token, which is also the server's time
        fast = f"granted {fast} {fast} {lease_ms} 0".encode()
    if isinstance(fast, Exception):
        assert type(fast) is type(general), (arguments, general)
    else:
        assert fast == general, arguments
    assert fast_left == left
    assert fast_messages == messages
    for one, other in zip(fast_ttls, ttls, strict=True):
        assert (one < 0) == (other < 0), (fast_ttls, ttls)
        assert abs(one - other) <= TTL_TOLERANCE_MS, (fast_ttls, ttls)


@pytest.fixture
def twins(server: RedisServer, name: str) -> Iterator[Twins]:
    with server.client() as raw, raw.pubsub(ignore_subscribe_messages=True) as inbox:
        inbox.subscribe("fencedlock:inbox:listens")
        inbox.get_message(timeout=5)
        yield Twins(raw, inbox, name)
        raw.delete(*keys_of(lock_key("fencedlock", name)))


CHANNELS = "1 fencedlock:inbox:"
whose_hold = st.sampled_from(["ours", "ours", "ours", "another's", "of before"])


@st.composite
def acquire_arguments(draw: st.DrawFn) -> list[Any]:
    floor = draw(st.sampled_from([0, NOW_US, NOW_US + 50, 2**53])) if rarely(draw) else NOW_US - 1
    not_after_us = NOW_US + (-1 if rarely(draw) else 1000)
    mode, fair = draw(st.sampled_from(["try", "queue", "queue", "beat"])), draw(st.integers(0, 1))
    return [
        draw(claims),
        floor,
        not_after_us,
        "30000 host/9/9",
        30_000,
        mode,
        f"{fair} {draw(spans_ms)} {CHANNELS}",
    ]


def check_acquire(
    twins: Twins, scripts: tuple[str, str], examples: int, *, derandomize: bool = False
) -> None:
    @settings(many, max_examples=examples, derandomize=derandomize)
    @given(st.one_of(states(), states(held=False)), acquire_arguments())
    def check(state: dict[str, Any], arguments: list[Any]) -> None:
        assert_equal(twins.outcomes(scripts, state, arguments), arguments, 30_000)

    check()


def check_release(
    twins: Twins, scripts: tuple[str, str], examples: int, *, derandomize: bool = False
) -> None:
    @settings(many, max_examples=examples, derandomize=derandomize)
    @given(states(held=True), whose_hold, st.sampled_from([0, 0, 0, NOW_US + 2000]))
    def check(state: dict[str, Any], whose: str, bury_until_us: int) -> None:
        claim = "nobody/1/1" if whose == "another's" else state["lock"]["owner"]
        token = state["lock"]["token"] - (1 if whose == "of before" else 0)
        arguments = [claim, token, bury_until_us, CHANNELS]
        assert_equal(twins.outcomes(scripts, state, arguments), arguments, 30_000)

    check()


def test_a_free_lock_is_granted_as_any_lock_is(twins: Twins) -> None:
    check_acquire(twins, (ACQUIRE, GENERAL_ACQUIRE), EXAMPLES)


def test_a_release_ends_and_hands_over_as_the_functions_do(twins: Twins) -> None:
    check_release(twins, (RELEASE, GENERAL_RELEASE), EXAMPLES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("last[1] == last[2] and", ""),
        ("not last[3] and", ""),
        ("issued < now_us and tonumber(floor) < now_us", "tonumber(floor) < now_us"),
        ("and tonumber(floor) < now_us", ""),
        ("call('HSET', fence, 'issued', now)\n    call('HSET', lock", "call('HSET', lock"),
        ("    call('PEXPIRE', lock, lease_ms)\n    return now_us", "    return now_us"),
        ("and now_us < issued - issued % PERIOD_US + PERIOD_US", ""),
    ],
)
def test_a_mutant_of_the_fast_acquire_is_caught(old: str, new: str, twins: Twins) -> None:
    with pytest.raises(AssertionError):
        check_acquire(
            twins,
            (without(ACQUIRE, (old, new)), GENERAL_ACQUIRE),
            MUTANT_EXAMPLES,
            derandomize=True,
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if ours and not first[1] and ARGV[3] == '0' then", "if ours and not first[1] then"),
        (
            (
                "  if call('HSET', fence, 'ended', token) == 1 then\n"
                "    call('PEXPIRE', fence, FENCE_TTL_MS)\n  end\n  return"
            ),
            "  call('HSET', fence, 'ended', token)\n  return",
        ),
        (
            "if ours and ARGV[3] == '0' and call('HLEN', lock) == 3 then",
            "if ours and ARGV[3] == '0' then",
        ),
        ("(not counts or counts[2] ~= 0) and", ""),
        ("and tonumber(floor) < now_us", ""),
        ("and tonumber(span_ms) == MOST_SPAN_MS", ""),
        ("left_us > 0 and", ""),
        ("    call('HDEL', waiters, successor)\n", ""),
        ("and issued < now_us and now_us <", "and now_us <"),
    ],
)
def test_a_mutant_of_the_fast_release_is_caught(old: str, new: str, twins: Twins) -> None:
    with pytest.raises(AssertionError):
        check_release(
            twins,
            (without(RELEASE, (old, new)), GENERAL_RELEASE),
            MUTANT_EXAMPLES,
            derandomize=True,
        )


# --- fast paths in Python


@pytest.fixture
def backends(connect: Callable[..., fencedlock.Client]) -> tuple[RedisBackend, RedisBackend]:
    """Two backends that never connect."""
    one, other = (
        cast("RedisBackend", connect("redis://127.0.0.1:1")._table.backend) for _ in range(2)
    )
    return one, other


def seen(backend: RedisBackend) -> tuple[float, int, dict[str, int]]:
    return backend.ahead_us, backend.floors.of_all, dict(backend.floors.of_lifted)


@many
@given(
    floor=st.integers(0, NOW_US + 10),
    ahead_us=st.floats(-1e7, 1e7),
    token=st.integers(NOW_US - 10**7, NOW_US + 10**7),
)
def test_a_token_that_a_message_brings_counts_as_any_token_does(
    backends: tuple[RedisBackend, RedisBackend], floor: int, ahead_us: float, token: int
) -> None:
    now = NOW_US / 1e6
    fast, general = backends
    for backend in backends:
        backend.floors.of_all, backend.ahead_us = floor, ahead_us
        backend.floors.of_lifted.clear()
    fast.saw("x", token, now)
    general.floors.saw("x", token, int(now * 1e6 + ahead_us), int(now * 1e6))
    assert seen(fast) == seen(general)


@many
@given(
    floor=st.integers(0, NOW_US + 10), token=st.integers(10**9, 2**52), asked_at=st.floats(1e3, 1e6)
)
def test_an_answer_that_is_a_number_is_a_grant_in_few_words(
    backends: tuple[RedisBackend, RedisBackend],
    client: fencedlock.Client,
    name: str,
    floor: int,
    token: int,
    asked_at: float,
) -> None:
    lease_ms = 30_000
    bound = client._table.backend.bind_lock(name)
    claim = Claim("c/1/1", bound, this_thread.owner, lease_ms / 1000, fair=True, patient=True)
    answers = []
    for backend, line in zip(
        backends, (f":{token}\r\n", f"+granted {token} {token} {lease_ms} 0\r\n"), strict=True
    ):
        backend.floors.of_all, backend.ahead_us = floor, 0.0
        backend.floors.of_lifted.clear()
        with mock.patch.object(
            server_time, "now_seconds", return_value=asked_at
        ):  # it came at once
            answer = backend.read_claim_answer(claim, line.encode(), asked_at)
        answers.append((answer, seen(backend)))
    assert answers[0] == answers[1]


@many
@given(
    ahead_us=st.floats(1e6, 8e15),
    delays=st.lists(st.floats(0, 1e7), min_size=1, max_size=5),
    asked_at=st.floats(1e3, 1e6),
)
def test_an_answer_that_took_long_does_not_put_the_server_s_time_ahead(
    backends: tuple[RedisBackend, RedisBackend],
    ahead_us: float,
    delays: list[float],
    asked_at: float,
) -> None:
    """Whether it was granted late, or its process was stopped before it read the answer."""
    backend = backends[0]
    bound: Any = backend.bind_lock("x")
    claim = Claim("c/1/1", bound, this_thread.owner, 30, fair=True, patient=True)
    backend.ahead_us = 0.0
    for delay_us in delays:
        token = int(asked_at * 1e6 + ahead_us + delay_us)
        backend.read_claim_answer(claim, f":{token}\r\n".encode(), asked_at)
    assert backend.ahead_us <= ahead_us + min(delays) + 10
    now_us = asked_at * 1e6 + ahead_us
    for line in (f"+late {now_us:.0f}", f"+granted {now_us:.0f} {now_us:.0f} 30000 0"):
        with mock.patch.object(server_time, "now_seconds", return_value=asked_at + 5):
            backend.read_claim_answer(claim, f"{line}\r\n".encode(), asked_at)
        assert abs(backend.ahead_us - ahead_us) <= 10


class _Scripted:
    """A socket on which a reply arrives in these pieces, and then the end of the connection."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._left = list(pieces)

    def sendall(self, packed: bytes) -> None:
        pass

    def recv(self, most: int) -> bytes:
        if not self._left:
            return b""
        piece = self._left.pop(0)
        if len(piece) > most:
            self._left.insert(0, piece[most:])
        return piece[:most]


@st.composite
def pieces_of_replies(draw: st.DrawFn) -> list[bytes]:
    """Draw a reply, most often one line, as the pieces in which it arrives."""
    words = st.text("abc 019:+-", max_size=300).map(str.encode)
    line = st.tuples(st.sampled_from([b"+", b":", b"-ERR ", b"-NOSCRIPT ", b"$", b"*", b""]), words)
    reply = b"".join(draw(line)) + draw(
        st.sampled_from([b"\r\n"] * 6 + [b"\n", b"", b"\r\n+more\r\n", b"x\ny\r\n"])
    )
    cuts = sorted(draw(st.lists(st.integers(0, len(reply)), max_size=3)))
    ends = [0, *cuts, len(reply)]
    return [reply[start:end] for start, end in itertools.pairwise(ends) if start < end]


@many
@given(pieces=pieces_of_replies())
def test_a_line_is_read_as_the_first_of_several(
    client: fencedlock.Client, pieces: list[bytes]
) -> None:
    client.ping()
    connections = cast("RedisBackend", client._table.backend).connections
    parser = connections._idle[-1]._connection._parser

    def outcome(talk: Callable[[Wire, bytes], Any] | None) -> Any:
        wire = Wire(SimpleNamespace(_parser=parser, disconnect=lambda: None))
        wire.sock, wire.used_at, wire.timeout_seconds = _Scripted(pieces), now_seconds(), 5.0
        connections._idle.append(wire)
        try:
            reply, sent = connections.converse(b"x", 5.0, now_seconds(), 1, talk)
        except fencedlock.BackendError as error:
            return type(error), str(error)
        connections._idle.remove(wire)
        return type(reply), str(reply), sent

    assert outcome(None) == outcome(lambda wire, packed: wire.ask_lines(packed, 1)[0])


def test_the_states_of_these_tests_take_the_fast_paths(twins: Twins, server: RedisServer) -> None:
    """If they did not, the tests above would compare general paths with themselves."""
    taken = {"acquire": 0, "end": 0, "hand over": 0}
    marked_acquire = without(ACQUIRE, ("    return now_us\n", "    return 'fast'\n"))
    marked_release = without(
        RELEASE,
        ("  return { ok = 'released' }\nend\n", "  return 'end'\nend\n"),
        ("    return { ok = 'released' }\n  end\n", "    return 'hand over'\n  end\n"),
    )

    @settings(many, max_examples=300, derandomize=True)
    @given(st.one_of(states(), states(held=False)), acquire_arguments(), states(held=True))
    def count(state: dict[str, Any], arguments: list[Any], held: dict[str, Any]) -> None:
        answer = twins.outcomes((marked_acquire, marked_acquire), state, arguments)[0][0]
        taken["acquire"] += answer == b"fast"
        release = [held["lock"]["owner"], held["lock"]["token"], 0, CHANNELS]
        answer = twins.outcomes((marked_release, marked_release), held, release)[0][0]
        taken["end"] += answer == b"end"
        taken["hand over"] += answer == b"hand over"

    count()
    assert min(taken.values()) >= 10, taken


def test_a_standing_clock_is_what_the_scripts_read(server: RedisServer, name: str) -> None:
    keys = keys_of(lock_key("fencedlock", name))
    with server.client() as raw:
        assert (
            raw.eval(
                ACQUIRE, 5, *keys, "c/1/1", 0, NOW_US - 1, "h", 30_000, "try", f"0 1000 {CHANNELS}"
            )
            == f"late {NOW_US}".encode()
        )
        with pytest.raises(redis.ResponseError):
            raw.eval("return redis.call('TIME', 1)", 0)
