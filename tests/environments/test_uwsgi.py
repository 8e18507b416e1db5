"""A real uWSGI with default options.

It forks its workers in C after it has imported the application, and runs none of Python's hooks.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually
from tests.environments.conftest import ROOT, Program
from tests.servers import LockServer, free_port

WORKERS = 3
TIMES = 40


def find_uwsgi() -> str:
    """Return the path of the program, or skip the test, with the reason, if there is none."""
    found = Path(sys.prefix, "bin", "uwsgi")
    if not found.exists():
        pytest.skip(
            "uWSGI is not installed: pip install pyuwsgi, or, where there is no wheel and a "
            "compiler, uwsgi"
        )
    works = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if works.returncode != 0:
        pytest.skip(f"uWSGI does not start here: {works.stderr[-200:]}")
    return str(found)


def ask(port: int, path: str) -> Any:
    """Return the answer of the application, once it serves."""

    def answer() -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as response:
                return [json.loads(response.read())]
        except (ConnectionError, urllib.error.URLError):
            return None  # it is still starting

    (said,) = eventually(answer, 60)
    return said


def test_workers_of_uwsgi_are_clients_of_their_own(
    lock_server: LockServer, command: Callable[..., Program], name: str, tmp_path: Path
) -> None:
    counter, meeting = tmp_path / "counter", tmp_path / "meeting"
    counter.write_text("0")
    meeting.mkdir()
    port = free_port()
    running = command(
        find_uwsgi(),
        *(
            "--http-socket",
            f"127.0.0.1:{port}",
            "--master",
            "--processes",
            str(WORKERS),
            "--die-on-term",
        ),
        *(
            "--wsgi-file",
            str(Path(__file__).with_name("wsgi_application.py")),
            "--virtualenv",
            sys.prefix,
            "--pythonpath",
            str(ROOT),
        ),
        LOCK_URL=lock_server.url,
        LOCK_NAME=name,
        COUNTER=str(counter),
        MEETING=str(meeting),
        WORKERS=str(WORKERS),
    )
    said: list[Any] = []
    asking = [
        threading.Thread(target=lambda: said.append(ask(port, f"count/{TIMES}")))
        for _ in range(WORKERS)
    ]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert len(said) == WORKERS, running.errors
    assert {each.get("error") for each in said} == {None}, said
    assert len({each["pid"] for each in said}) == WORKERS
    assert len({each["client"] for each in said}) == WORKERS, (
        "each worker has a client id of its own"
    )
    tokens = [token for each in said for token in each["tokens"]]
    assert len(set(tokens)) == WORKERS * TIMES
    assert counter.read_text() == str(WORKERS * TIMES)

    holder = ask(port, "hold")
    assert holder["held"]
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(60)
    # A worker that ends releases what it holds, long before the lease ends.
    eventually(lambda: lock_server.leftovers(name) == set())
