"""The demo, as a user sees it."""

from __future__ import annotations

import multiprocessing
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import fencedlock
from fencedlock import FencingToken, StaleTokenError
from fencedlock.cli import demo as demo_module
from fencedlock.cli import main
from fencedlock.cli.account import Account
from fencedlock.cli.worker import Script
from tests.conftest import eventually
from tests.servers import RedisServer, free_port


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "fencedlock",
        "demo",
        "--updates",
        "30",
        "--ttl",
        "0.7",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


def status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return "gone"


def row(output: str, label: str) -> str:
    found = re.search(rf"^ +{label} +(.+)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_with_tokens_no_update_is_lost_and_the_stale_write_is_refused(server: RedisServer) -> None:
    done = demo("--url", server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "updates wanted") == row(done.stdout, "updates found") == "120"
    assert row(done.stdout, "lost updates") == "0"
    assert row(done.stdout, "stale writes refused") == "1"
    assert row(done.stdout, "once woken").startswith("it knew")
    assert row(done.stdout, "left on the server") == "nothing but the last token"


def test_without_tokens_it_shows_the_damage(server: RedisServer) -> None:
    done = demo("--url", server.url, "--unsafe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(row(done.stdout, "lost updates")) >= 1
    assert "the holder learned too late" in done.stdout


def test_workers_that_start_late_do_no_harm(
    server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker starts late.

    By then the earlier workers have made all their updates, or wait for the parent's signal.
    """
    start_worker = demo_module._Show._start_worker

    def start_late(show: Any, updates: int) -> None:
        start_worker(show, updates)
        shared = show.script._shared
        eventually(lambda: shared[0] == len(show.workers) * updates or shared[1], timeout=60)

    monkeypatch.setattr(demo_module._Show, "_start_worker", start_late)
    assert (
        main(["demo", "--url", server.url, "--workers", "3", "--updates", "10", "--ttl", "0.7"])
        == 0
    )
    assert row(capsys.readouterr().out, "stale writes refused") == "1"


def test_an_incident_happens_to_one_worker_when_it_is_due() -> None:
    script = Script(multiprocessing.get_context("spawn"), incidents_at=(1, 3))
    seen = []
    for _ in range(5):
        seen += [script.begin_incident(), script.begin_incident()]
        script.note_update()
    assert seen == [None, None, 0, None, None, None, 1, None, None, None]


def test_a_server_that_is_not_there_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fencedlock.cli.demo.OUTAGE_SECONDS", 0.3)
    assert main(["demo", "--url", f"redis://127.0.0.1:{free_port()}/0"]) == 2
    assert "gave no answer" in capsys.readouterr().err
    assert main(["demo", "--url", "nonsense://x"]) == 2
    assert "unknown kind of lock server" in capsys.readouterr().err


def test_the_guard_refuses_lower_tokens_only(tmp_path: Path) -> None:
    account = Account(tmp_path / "a.db", check_tokens=True)
    account.write(FencingToken("x", 5), 1)
    account.write(FencingToken("x", 5), 2)
    account.write(FencingToken("x", 6), 3)
    with pytest.raises(StaleTokenError) as caught:
        account.write(FencingToken("x", 5), 4)
    assert (caught.value.presented, caught.value.stored) == (5, 6)
    assert account.read(None) == 3
    account.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_however_it_ends_no_process_is_left(server: RedisServer, number: int) -> None:
    if number == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("needs Linux's parent-death signal")
    command = [sys.executable, "-m", "fencedlock", "demo", "--url", server.url, "--ttl", "4"]
    # If this process ignored the signal, the child would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        eventually(lambda: "is frozen" in (process.stdout or sys.stdin).readline())
        workers = psutil.Process(process.pid).children()
        eventually(lambda: any(status(worker) == psutil.STATUS_STOPPED for worker in workers))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    eventually(lambda: all(status(worker) in ("gone", psutil.STATUS_ZOMBIE) for worker in workers))
    assert "Traceback" not in errors


def test_a_server_that_dies_is_one_line(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    command = [sys.executable, "-m", "fencedlock", "demo", "--url", server.url, "--updates", "3000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        eventually(lambda: "wakes up" in (process.stdout or sys.stdin).readline())
        server.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "gave no answer" in errors


def test_a_password_is_not_shown(connect: Callable[..., fencedlock.Client]) -> None:
    client = connect("redis://joe:sesame@127.0.0.1:1/0")
    assert "sesame" not in repr(client)
    assert "'redis://127.0.0.1:1/0'" in repr(client)
    with pytest.raises(fencedlock.ConfigurationError) as caught:
        connect("redis://:sesame@h:99999")
    assert "sesame" not in str(caught.value)
