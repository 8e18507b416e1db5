"""The application of test_celery.py, for ``python -m celery -A ... worker -P prefork ...``.

The worker itself sends the tasks once it is ready, and each task records its outcome.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_ready

import fencedlock

app = Celery("tests.environments.celery_application", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    worker_max_tasks_per_child=int(os.environ.get("TASKS_PER_CHILD", "0")) or None,
    task_default_queue=os.environ["LOCK_NAME"],
)

client = fencedlock.connect(os.environ["LOCK_URL"], ttl=60)
lock = client.FairLock(os.environ["LOCK_NAME"])
folder = Path(os.environ["FOLDER"])


def note(words: str) -> None:
    """Write a line that the test reads."""
    with (folder / "notes").open("a") as notes:
        notes.write(f"{words}\n")


@app.task
def count(times: int, together: int) -> None:
    """Increase the counter, once ``together`` tasks run at the same time."""
    here = folder / f"{os.getpid()}-{threading.get_ident()}"
    here.touch()
    while len(list(folder.glob("*-*"))) < together:
        time.sleep(0.002)
    counter = folder / "counter"
    try:
        for _ in range(times):
            with lock as token:
                before = int(counter.read_text())
                time.sleep(0)
                counter.write_text(str(before + 1))
                note(f"token {int(token)}")
    except Exception as error:
        note(f"{error!r}")
    note("counted")


@app.task(soft_time_limit=1000)
def wait() -> None:
    """Wait for the lock without a timeout."""
    note(f"waiting {os.getpid()}")
    try:
        lock.acquire()
    except SoftTimeLimitExceeded:
        note("SoftTimeLimitExceeded")
    except BaseException as error:
        note(f"{error!r}")
    else:
        note("acquired")


@app.task
def keep() -> None:
    """Take the lock, and do not release it."""
    note(f"kept {lock.acquire()}")


@worker_ready.connect
def _send(**_: Any) -> None:
    name, *arguments = os.environ["TASK"].split()
    for _number in range(int(os.environ["TASKS"])):
        app.tasks[f"tests.environments.celery_application.{name}"].delay(*map(int, arguments))
