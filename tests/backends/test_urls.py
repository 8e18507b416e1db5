"""What a URL may contain, for every scheme.

A wrong URL is refused before any I/O. Nothing shows a password or another secret of a URL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
import redis.connection
import redis.sentinel
import trustme
import valkey
from hypothesis import given
from hypothesis import strategies as st

import fencedlock
from fencedlock.backends.etcd.settings import Settings, settings_of_url
from fencedlock.backends.redis.scripts import scripts_of
from fencedlock.backends.redis.settings import settings_of
from fencedlock.backends.targets import without_password
from fencedlock.backends.urls import Host, parsed
from tests.servers import RedisServer, free_port

SECRET = "S3cret"

SHOWN = {
    "redis://:S3cret@h:1/0": "redis://h:1/0",
    "redis://S3cret@h": "redis://h",
    "redis://joe:S3cret@h/3": "redis://h/3",
    "redis://joe:S3cret:more@h:1/0": "redis://h:1/0",
    "redis://joe:S3cret@more@h:1/0": "redis://h:1/0",
    "redis://joe:100%S3cret@h:1/0": "redis://h:1/0",
    "redis://joe:[S3cret]@h:1/0": "redis://h:1/0",
    "redis://joe:[S3cret@h:1/0": "redis://h:1/0",
    "redis://joe:S3cret\u2100@h:1/0": "redis://h:1/0",
    "redis://joe:S3cret%2F%3F%23%40@[::1]:1/0": "redis://[::1]:1/0",
    "redis://h:1/0?password=S3cret": "redis://h:1/0",
    "redis://h:1/0?password=S3cret@more": "redis://h:1/0",
    "redis://h:1?username=S3cret&password=S3cret&db=4": "redis://h:1/4",
    "redis://h:1/0?client_name=S3cret": "redis://h:1/0",
    "REDIS://joe:S3cret@h:1/0": "redis://h:1/0",
    " redis://joe:S3cret@h:1/0\n": "redis://h:1/0",
    "rediss://joe:S3cret@h:1/0?ssl_password=S3cret&ssl_keyfile=S3cret": "rediss://h:1/0",
    "unix://joe:S3cret@/run/p.sock": "unix:///run/p.sock",
    "unix:///run/p.sock?db=2&password=S3cret": "unix:///run/p.sock?db=2",
    "etcd://joe:S3cret@h:1": "etcd://h:1",
    "etcd://joe:S3cret:x@h1:1,h2,[::1]:3": "etcd://h1:1,h2,[::1]:3",
    "etcd://joe:S3cret,x@h1:1,h2": "etcd://h1:1,h2",
    "etcds://joe:S3cret/@h:1".replace("/@", "%2F@"): "etcds://h:1",
}

REFUSED = [
    "S3cret",
    "joe:S3cret@h:1",
    "redis:joe:S3cret@h",
    "http://joe:S3cret@h",
    "reids://joe:S3cret@h:1/0",
    "redis://joe:S3cret",
    "redis://joe:S3cret/more@h:1/0",
    "redis://joe:S3cret?more@h:1/0",
    "redis://joe:S3cret#more@h:1/0",
    "redis://joe:1/S3cret@h:1/0",
    "redis://joe:1?S3cret@h:1/0",
    "redis://joe:1?S3cret=@h:1/0",
    "redis://joe:1#S3cret@h:1/0",
    "redis://joe:1/0?ttl=1#S3cret@h:1/0",
    "redis://joe:S3cret\n@h:1/0",
    "redis://joe:S3cret@h:port/0",
    "redis://joe:S3cret@h:99999/0",
    "redis://joe:S3cret@h:0/0",
    "redis://joe:S3cret@h:/0",
    "redis://joe:S3cret@h 1/0",
    "redis://joe:S3cret@h%201/0",
    "redis://joe:S3cret@[::1/0",
    "redis://joe:S3cret@[S3cret]/0",
    "redis://joe:S3cret@h1,h2/0",
    "redis://joe:S3cret@h/abc",
    "redis://joe:S3cret@h/S3cret",
    "redis://h?S3cret",
    "redis://h?S3cret=1",
    "redis://h?passwort=S3cret",
    "redis://h?db=S3cret",
    "redis://h?port=S3cret",
    "redis://h?protocol=S3cret",
    "redis://h?socket_keepalive=S3cret",
    "redis://h?max_connections=S3cret",
    "redis://h?ssl_password=S3cret",
    "redis://h?password=S3cret&password=S3cret",
    "redis://h?ttl=S3cret",
    "redis://h?namespace=%7BS3cret",
    "rediss://joe:S3cret@h?ssl_cert_reqs=S3cret",
    "rediss://joe:S3cret@h?ssl_check_hostname=S3cret",
    "rediss://joe:S3cret@h?ssl_include_verify_flags=S3cret",
    "unix://joe:S3cret/more@/run/p.sock",
    "unix://joe:S3cret@h/run/p.sock",
    "unix://joe:S3cret@",
    "etcd://joe:S3cret",
    "etcd://:S3cret@h",
    "etcd://S3cret@h",
    "etcd://joe:S3cret/more@h",
    "etcd://joe:S3cret@h1,,h2",
    "etcd://joe:S3cret@h/S3cret",
    "etcd://joe:S3cret@h?S3cret=1",
    "etcd://joe:S3cret@h?ca=S3cret",
    "etcds://joe:S3cret@h?ca=S3cret",
    "etcds://joe:S3cret@h?cert=S3cret",
    "embedded://joe:S3cret@/tmp",
    "embedded:///tmp?password=S3cret",
]


def everything_told(error: BaseException) -> str:
    """Return the text of an error as it is logged, and of all errors that led to it.

    It includes those that a traceback leaves out.
    """
    told = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    told = told.split("fencedlock.errors.")[-1]  # omits the lines of this test's code
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
        told += repr(error) + str(vars(error))
    return told


@pytest.mark.parametrize("url", SHOWN)
def test_a_client_shows_scheme_host_port_and_database_alone(
    url: str, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(url)
    assert repr(client).startswith(f"<fencedlock.Client of {SHOWN[url]!r}, id ")
    assert without_password(url) == SHOWN[url]
    lock = client.RLock("x")
    assert SECRET not in repr(lock) + repr(client.recipe) + repr(client) + repr(
        client._table.backend
    )
    client.close()
    assert SECRET not in repr(client)


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_refused_is_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET in url
    with pytest.raises(fencedlock.ConfigurationError) as caught:
        fencedlock.connect(url)
    assert SECRET not in everything_told(caught.value)
    assert SECRET not in without_password(url)
    monkeypatch.setattr(fencedlock.connecting, "_default", None)
    monkeypatch.setenv("FENCEDLOCK_URL", url)
    with pytest.raises(
        fencedlock.ConfigurationError, match=r"FENCEDLOCK_URL|takes|needs"
    ) as caught:
        fencedlock.RLock("x")
    assert SECRET not in everything_told(caught.value)


@given(
    st.sampled_from(["redis", "rediss", "unix", "etcd", "etcds", "embedded", "http"]),
    st.text(alphabet=":/@?#[]%&=+,; \n.ü1a", max_size=6),
    st.text(alphabet=":/@?#[]%&=+,; \n.ü1a", max_size=6),
)
def test_no_spelling_of_a_password_shows_it(scheme: str, before: str, after: str) -> None:
    """The secret is never shown, whatever surrounds it in the user part of the URL."""
    url = f"{scheme}://joe:{before}{SECRET}{after}@h:1/0"
    try:
        with fencedlock.connect(url) as client:
            told = repr(client)
    except fencedlock.ConfigurationError as error:
        told = everything_told(error)
    assert SECRET not in told


def test_settings_of_etcd_show_no_login() -> None:
    settings = settings_of_url("etcd://S3cret:S3cret@h")
    assert (settings.user, settings.password) == (SECRET, SECRET)
    assert SECRET not in repr(settings)
    assert SECRET not in repr(parsed("etcd://S3cret:S3cret@h?x=S3cret"))


@pytest.mark.parametrize("scheme", ["redis", "unix", "rediss"])
def test_a_server_that_is_not_there_is_named_without_the_password(
    scheme: str,
    connect: Callable[..., fencedlock.Client],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    place = f"/{tmp_path}/s" if scheme == "unix" else f"127.0.0.1:{free_port()}/0"
    client = connect(f"{scheme}://joe:S3cret@{place}")
    with pytest.raises(fencedlock.BackendUnavailableError) as caught:
        client.RLock("x").acquire(False)
    assert SECRET not in everything_told(caught.value) + caplog.text


def test_a_refused_password_is_not_shown(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    server = own_server()
    with server.client() as raw:
        raw.config_set("requirepass", "another")
    with pytest.raises(fencedlock.BackendError) as caught:
        connect(f"redis://:S3cret@127.0.0.1:{server.port}/0").inspect("x")
    assert SECRET not in everything_told(caught.value)


def test_a_password_may_hold_anything(
    own_server: Callable[..., RedisServer], connect: Callable[..., fencedlock.Client]
) -> None:
    server, password = own_server(), "a:b/c@d#e?f%g h+i&j=[k]"
    with server.client() as raw:
        raw.config_set("requirepass", password)
    port = server.port
    for url in (
        f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0",
        f"redis://127.0.0.1:{port}/0?password={quote(password, safe='')}",
        f"unix://:{quote(password, safe='')}@{server.socket}",
        f"unix://{server.socket}?password={quote(password, safe='')}&db=1",
    ):
        assert not connect(url).inspect("x").locked
        with connect(url).RLock("x"):
            pass
    with redis.Redis(port=port, password=password) as raw:
        raw.config_set("requirepass", "")


# --- how a URL is read


def test_the_parts_of_a_url() -> None:
    address = parsed("redis://joe:s%40@[fe80::1%25eth0]:7/%30?a=%26+b&c=")
    assert (address.scheme, address.user, address.password, address.path) == (
        "redis",
        "joe",
        "s@",
        "/0",
    )
    assert address.hosts == (Host("[fe80::1%25eth0]", 7),)
    assert address.hosts[0].name == "fe80::1%eth0"
    assert address.options == {"a": "& b", "c": ""}


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost",
        "redis://:6380",
        "redis://joe@h",
        "redis://:pw@h/",
        "redis://joe:s%40%2F@h:1/2",
        "redis://h/2?db=3",
        "redis://h?db=3&socket_connect_timeout=2&health_check_interval=5&client_name=x",
        "redis://h?username=joe&password=pw",
        "redis://joe:pw@h?username=other&password=other",
        "redis://h?password=",
        "redis://[::1]:7/0",
        "redis://?host=h",
        "redis://h?retry_on_timeout=yes&socket_keepalive=False&decode_responses=",
        "rediss://h?ssl_ca_certs=x&ssl_cert_reqs=required&ssl_check_hostname=yes",
        "unix:///run/p.sock",
        "unix://joe:pw@/run/p%20q.sock?db=3",
        "unix:///run/p.sock?password=pw",
    ],
)
def test_redis_py_reads_the_same(url: str) -> None:
    theirs = {
        "connection_class": redis.Connection,
        **redis.connection.parse_url(url),
        "socket_timeout": 5.0,
    }
    ours = settings_of(parsed(url), 5.0)
    if url.startswith("rediss"):
        theirs["ssl_check_hostname"] = True
    assert ours == theirs


def test_numbers_are_numbers_with_every_redis_py() -> None:
    settings = settings_of(
        parsed("rediss://h?protocol=3&ssl_min_version=771&max_connections=9&socket_read_size=99"),
        5.0,
    )
    assert (settings["protocol"], settings["ssl_min_version"], settings["socket_read_size"]) == (
        3,
        771,
        99,
    )
    assert "max_connections" not in settings, "it is the pool's"


def test_an_ipv6_address_stands_among_other_hosts() -> None:
    """Newer versions of Python's urlsplit refuse such a URL."""
    assert settings_of_url("etcd://joe:pw@a,b:1,[::1]:2").endpoints == ("a:2379", "b:1", "[::1]:2")
    assert settings_of_url("etcd://[::1],[::2]:5,c") == Settings(
        ("[::1]:2379", "[::2]:5", "c:2379")
    )


def test_urllib_splits_no_url_of_ours(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[..., fencedlock.Client]
) -> None:
    """So it does not matter what a version of urllib refuses, or shows in its errors."""

    def strict(*_: Any, **__: Any) -> Any:
        raise ValueError("Invalid IPv6 URL")

    monkeypatch.setattr("urllib.parse.urlsplit", strict)
    for url in ("etcd://a,b:1,[::1]:2", "redis://a:1/0", "unix:///p.sock"):
        assert connect(url)


STRICT = """
import sys, urllib.parse
try: urllib.parse.urlsplit('x://a,[::1]:2')
except ValueError: print('strict', *sys.version_info[:2])
"""


def test_a_python_with_the_strict_urlsplit() -> None:
    """The newest patch releases have the strict urlsplit, and so do some systems' packages."""
    # Only this version of Python can use the packages of this environment.
    wanted = ["strict", *map(str, sys.version_info[:2])]
    pythons = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    strict = [
        python
        for python in pythons
        if Path(python).exists() and _output(python, STRICT).split() == wanted
    ]
    if not strict:
        pytest.skip("no Python of this version here has the strict urlsplit")
    assert "etcd://a,b:1,[::1]:2" in _output(
        strict[0], "import fencedlock; print(fencedlock.connect('etcd://a,b:1,[::1]:2'))"
    )


def _output(python: str, code: str) -> str:
    ours = [
        path for path in sys.path if path.endswith("-packages") or Path(path, "fencedlock").is_dir()
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(ours)}
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    ).stdout


# --- options


SCHEMES = {
    "redis": "redis://localhost:1/0",
    "rediss": "rediss://localhost:1/0",
    "unix": "unix:///nowhere/p.sock",
    "etcd": "etcd://localhost:1",
    "etcds": "etcds://localhost:1",
    "embedded": "embedded:///tmp/fencedlock-test-of-urls",
}


@pytest.mark.parametrize("scheme", SCHEMES)
class TestOptions:
    def test_settings_stand_in_the_query(
        self, scheme: str, connect: Callable[..., fencedlock.Client]
    ) -> None:
        url = f"{SCHEMES[scheme]}?ttl=12.5&namespace=shop%2Fa&outage_timeout=7&socket_timeout=2"
        client = connect(url)
        table = client._table
        assert (table.ttl, table.outage_timeout, table.backend.request_timeout_seconds) == (
            12.5,
            7,
            2,
        )
        assert table.backend._namespace == "shop/a"  # type: ignore[attr-defined]

    def test_an_argument_wins(self, scheme: str, connect: Callable[..., fencedlock.Client]) -> None:
        url = f"{SCHEMES[scheme]}?ttl=12.5&namespace=shop&outage_timeout=7&socket_timeout=2"
        table = connect(
            url, ttl=30, namespace="fencedlock", outage_timeout=30.0, socket_timeout=5
        )._table
        assert (table.ttl, table.outage_timeout, table.backend.request_timeout_seconds) == (
            30,
            30,
            5,
        )
        assert table.backend._namespace == "fencedlock"  # type: ignore[attr-defined]

    @pytest.mark.parametrize("setting", ["ttl", "outage_timeout", "socket_timeout", "token_memory"])
    @pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf"])
    def test_wrong_seconds_name_their_place(self, scheme: str, setting: str, text: str) -> None:
        with pytest.raises(
            fencedlock.ConfigurationError,
            match=rf"{setting}= in the query of the URL '{scheme}://.* number of seconds",
        ):
            fencedlock.connect(f"{SCHEMES[scheme]}?{setting}={text}")

    @pytest.mark.parametrize("text", ["", "%7Bx%7D", "%25", "a%0Ab"])
    def test_wrong_namespaces_name_their_place(self, scheme: str, text: str) -> None:
        with pytest.raises(
            fencedlock.ConfigurationError,
            match=rf"namespace= in the query of the URL '{scheme}://.* without braces",
        ):
            fencedlock.connect(f"{SCHEMES[scheme]}?namespace={text}")

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [
            ("tll=3", "ttl"),
            ("outage_timout=3", "outage_timeout"),
            ("socket_timout=3", "socket_timeout"),
        ],
    )
    def test_a_typo_is_refused_with_what_was_meant(
        self, scheme: str, typo: str, meant: str
    ) -> None:
        with pytest.raises(
            fencedlock.ConfigurationError,
            match=f"unknown option {typo.partition('=')[0]}=.*did you mean {meant}=",
        ):
            fencedlock.connect(f"{SCHEMES[scheme]}?{typo}")

    @pytest.mark.parametrize(
        "query", ["", "frobnicate", "frobnicate=", "retry=x", "connection_class=x", "a=1&ttl=3"]
    )
    def test_other_unknown_options_are_refused(
        self, scheme: str, query: str, connect: Callable[..., fencedlock.Client]
    ) -> None:
        if not query:
            assert connect(f"{SCHEMES[scheme]}?")
            return
        with pytest.raises(fencedlock.ConfigurationError, match=r"unknown option.*ttl="):
            fencedlock.connect(f"{SCHEMES[scheme]}?{query}")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "embedded"])
def test_token_memory_stands_in_the_query(
    scheme: str, connect: Callable[..., fencedlock.Client]
) -> None:
    backend = connect(f"{SCHEMES[scheme]}?token_memory=3600")._table.backend
    assert backend.scripts is scripts_of(3600.0)  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(connect(SCHEMES[scheme], token_memory=90).RLock("x")))
    assert again._client._table.backend.scripts is scripts_of(90.0)
    assert connect(SCHEMES[scheme])._table.backend.scripts is scripts_of()  # type: ignore[attr-defined]


def test_etcd_has_no_token_memory() -> None:
    for make in (
        lambda: fencedlock.connect("etcd://h?token_memory=3600"),
        lambda: fencedlock.connect("etcds://h", token_memory=3600),
        lambda: fencedlock.configure("etcd://h", token_memory=3600),
    ):
        with pytest.raises(
            fencedlock.ConfigurationError, match="token_memory is for Redis: leave it out"
        ):
            make()
    with fencedlock.connect("etcd://h", token_memory=None) as client:
        assert pickle.loads(pickle.dumps(client.RLock("x"))) is not None


def test_typos_of_redis_py_s_own_options() -> None:
    for typo, meant in (
        ("ssl_ca_cert=x", "ssl_ca_certs"),
        ("sockt_keepalive=1", "socket_keepalive"),
        ("client-name=x", "client_name"),
    ):
        with pytest.raises(fencedlock.ConfigurationError, match=f"did you mean {meant}="):
            fencedlock.connect(f"rediss://h?{typo}")
    with pytest.raises(fencedlock.ConfigurationError, match="etcds:// takes ca="):
        fencedlock.connect("etcd://h?ca=x")


@pytest.mark.usefixtures("no_default")
class TestEnvironment:
    @pytest.fixture
    def no_default(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(fencedlock.connecting, "_default", None)
        yield
        if fencedlock.connecting._default is not None:
            fencedlock.connecting._default.close()

    def test_settings_stand_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FENCEDLOCK_URL", "redis://localhost:1/0?ttl=3")
        monkeypatch.setenv("FENCEDLOCK_TTL", "12")
        monkeypatch.setenv("FENCEDLOCK_NAMESPACE", "shop")
        monkeypatch.setenv("FENCEDLOCK_OUTAGE_TIMEOUT", "7")
        monkeypatch.setenv("FENCEDLOCK_SOCKET_TIMEOUT", "")
        table = fencedlock.RLock("x")._client._table
        assert (table.ttl, table.outage_timeout, table.backend.request_timeout_seconds) == (
            3,
            7,
            5,
        )  # the URL's, the environment's, the default
        assert table.backend._namespace == "shop"  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "setting", ["TTL", "NAMESPACE", "OUTAGE_TIMEOUT", "SOCKET_TIMEOUT", "TOKEN_MEMORY"]
    )
    def test_a_wrong_one_names_its_place(
        self, setting: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FENCEDLOCK_URL", "redis://localhost:1/0")
        monkeypatch.setenv(f"FENCEDLOCK_{setting}", "{S3cret}")
        with pytest.raises(
            fencedlock.ConfigurationError,
            match=f"the environment variable FENCEDLOCK_{setting} must be",
        ) as caught:
            fencedlock.RLock("x")
        assert SECRET not in everything_told(caught.value)

    def test_other_clients_do_not_read_it(
        self, monkeypatch: pytest.MonkeyPatch, connect: Callable[..., fencedlock.Client]
    ) -> None:
        monkeypatch.setenv("FENCEDLOCK_TTL", "12")
        assert connect("redis://localhost:1/0")._table.ttl == 30


# --- TLS


@pytest.fixture
def tls(own_server: Callable[..., RedisServer], tmp_path: Path) -> tuple[int, Path]:
    """The port of a server with another host's certificate, and the signing authority's file."""
    authority = trustme.CA()
    certificate = authority.issue_cert("elsewhere.example")
    own, trusted, port = tmp_path / "own.pem", tmp_path / "ca.pem", free_port()
    certificate.private_key_and_cert_chain_pem.write_to_path(str(own))
    authority.cert_pem.write_to_path(str(trusted))
    files = {"tls_cert_file": str(own), "tls_key_file": str(own), "tls_ca_cert_file": str(trusted)}
    try:
        own_server("redis", tls_port=str(port), tls_auth_clients="no", **files)
    except RuntimeError:
        pytest.skip("this redis-server was built without TLS")
    return port, trusted


class TestCertificates:
    def test_another_host_s_is_refused(
        self, tls: tuple[int, Path], connect: Callable[..., fencedlock.Client]
    ) -> None:
        port, trusted = tls
        with pytest.raises(fencedlock.BackendError, match="certificate"):
            connect(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}").RLock("x").acquire(False)
        for option in ("ssl_check_hostname=no", "ssl_cert_reqs=none"):
            with connect(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={trusted}&{option}").RLock("x"):
                pass

    def test_the_name_is_checked_whatever_redis_py_does_by_default(self) -> None:
        """Versions of redis-py before 6 do not check it by default."""
        assert settings_of(parsed("rediss://h"), 5.0)["ssl_check_hostname"] is True
        assert (
            settings_of(parsed("rediss://h?ssl_check_hostname=0"), 5.0)["ssl_check_hostname"]
            is False
        )
        assert "ssl_check_hostname" not in settings_of(parsed("rediss://h?ssl_cert_reqs=none"), 5.0)


# --- targets that are no URL


def asynchronous(make: Callable[[], Any]) -> Any:
    async def inside() -> Any:
        return make()

    return asyncio.run(inside())


NO_URLS: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "no server"),
    "bytes": (lambda: b"redis://:S3cret@h", "decode it"),
    "bytearray": (lambda: bytearray(b"redis://:S3cret@h"), "decode it"),
    "Path": (lambda: PurePosixPath("/run/S3cret"), "unix:///the/socket"),
    "SplitResult": (lambda: urlsplit("redis://:S3cret@h"), r"geturl\(\)"),
    "list": (lambda: ["redis://:S3cret@h"], "one target"),
    "dict": (lambda: {"url": "redis://:S3cret@h"}, "one target"),
    "class": (lambda: redis.Redis, "a class"),
    "number": (lambda: 6379, "no client"),
    "asyncio": (redis.asyncio.Redis, "asyncio client"),
    "asyncio cluster": (
        lambda: asynchronous(lambda: redis.asyncio.cluster.RedisCluster(host="S3cret")),
        "asyncio client",
    ),
    "asyncio of valkey": (lambda: valkey.asyncio.Valkey(), "asyncio client"),
    "cluster": (
        lambda: object.__new__(
            type("RedisCluster", (redis.cluster.RedisCluster,), {"__del__": lambda _: None})
        ),
        "a cluster",
    ),
    "sentinel": (lambda: redis.sentinel.Sentinel([("S3cret", 1)]), r"master_for\(service\)"),
    "pool": (
        lambda: redis.ConnectionPool(password="S3cret"),
        r"redis\.Redis\(connection_pool=pool\)",
    ),
    "file": (lambda: json, "no client"),
}


@pytest.mark.parametrize("kind", NO_URLS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_url_and_no_client_is_told_what_to_do(kind: str) -> None:
    make, words = NO_URLS[kind]
    with pytest.raises(
        fencedlock.ConfigurationError,
        match=rf"can't lock through this \w+: .*{words}.*pass a URL or a redis\.Redis",
    ) as caught:
        fencedlock.connect(make())
    assert SECRET not in everything_told(caught.value)


def test_text_of_another_class_is_a_url(connect: Callable[..., fencedlock.Client]) -> None:
    class Hidden(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "***"

    client = connect(Hidden("redis://:S3cret@h:1/0"))
    assert repr(client).startswith("<fencedlock.Client of 'redis://h:1/0'")
    assert client.recipe is not None
    assert type(client.recipe.url) is str
