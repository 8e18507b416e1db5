"""The application of test_uwsgi.py.

It makes its client before uWSGI forks the workers. On Redis it also uses the client before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fencedlock
from tests.forks import settle

client = fencedlock.connect(os.environ["LOCK_URL"], ttl=60)
lock = client.FairLock(os.environ["LOCK_NAME"])
counter, meeting = Path(os.environ["COUNTER"]), Path(os.environ["MEETING"])

if os.environ["LOCK_URL"].startswith("redis"):
    with lock:
        pass
    settle()  # a thread that runs while uWSGI forks would keep the GIL of the workers for ever


def count(times: int) -> dict[str, Any]:
    """Increase the counter while all other workers do so too, and return the tokens."""
    (meeting / str(os.getpid())).touch()
    while len(list(meeting.iterdir())) < int(os.environ["WORKERS"]):
        time.sleep(0.002)
    tokens = []
    for _ in range(times):
        with lock as token:
            counter.write_text(str(int(counter.read_text()) + 1))
            tokens.append(int(token))
    return {"tokens": tokens}


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer ``/count/TIMES``, and ``/hold``, which takes the lock and keeps it."""
    try:
        what, _, times = environ["PATH_INFO"].strip("/").partition("/")
        said = count(int(times)) if what == "count" else {"held": lock.acquire(timeout=30)}
    except BaseException as error:
        said = {"error": repr(error)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "client": client.id, **said}).encode()]
