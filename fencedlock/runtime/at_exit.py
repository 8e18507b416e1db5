"""Releases everything when the process ends, however it ends: as far as Python can tell."""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import Protocol

from fencedlock.clock import Deadline
from fencedlock.runtime.process import become_own
from fencedlock.runtime.threads import finish_births

CLOSE_SECONDS = 5.0
"""How long closing a client waits for its server.

The end of the interpreter waits so long for all clients together.
"""


class Ending(Protocol):
    """What has something to release: the locks of one client."""

    def begin_exit(self, deadline: Deadline) -> None:
        """Begin to release everything."""

    def finish_exit(self, deadline: Deadline) -> None:
        """Wait until everything is released."""


tables: weakref.WeakSet[Ending] = weakref.WeakSet()
"""All lock tables that may have something to release.

A table outlives its client while its threads run.
"""


# Exit handlers run in the reverse order, so this one comes after release_all.
atexit.register(finish_births)


@atexit.register
def release_all(**_: object) -> None:
    """Release the holds of all clients at the same time.

    A server that does not answer must not delay the releases at other servers.
    """
    _release(list(tables))


def _release(ending: list[Ending]) -> None:
    become_own()
    deadline = Deadline(CLOSE_SECONDS)
    for table in ending:
        table.begin_exit(deadline)
    for table in ending:
        table.finish_exit(deadline)


def end_with_celery_child() -> None:
    """Make a process of Celery's pool release everything when it ends.

    Such a process ends by ``os._exit``, which runs no exit handlers.
    """
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(release_all, weak=False, dispatch_uid="fencedlock")


def end_with_multiprocessing_child(table: Ending) -> None:
    """Make a child of multiprocessing release the holds of this table when it ends.

    Such a child runs its finalizers when it ends, but before Python 3.13 no exit handlers.
    """
    for package in ("multiprocessing", "billiard"):  # billiard is Celery's
        processes = sys.modules.get(f"{package}.process")
        util = sys.modules.get(f"{package}.util")
        if processes is None or util is None:
            continue
        if getattr(processes.current_process(), "_parent_pid", None) is not None:
            util.Finalize(None, _release_if_alive, args=(weakref.ref(table),), exitpriority=100)


def _release_if_alive(table: weakref.ref[Ending]) -> None:
    alive = table()
    if alive is not None:
        _release([alive])
