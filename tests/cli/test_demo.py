"""The main job, as a person sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fencedlock import FencingToken, StaleTokenError
from fencedlock.cli import main
from fencedlock.cli.account import Account
from tests.servers import RedisServer, free_port


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fencedlock", "demo", "--updates", "30", "--ttl", "0.7", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


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
    assert "are gone, and nobody was told" in done.stdout


def test_a_server_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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
