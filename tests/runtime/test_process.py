"""What the child of a fork keeps of its parent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKED = """
import gc, os, threading, weakref
import fencedlock

kept = [threading.Thread(target=int)]
kept[0].start()
kept[0].join()
seen = weakref.ref(kept[0])
pid = os.fork()
if pid:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
kept.clear()
gc.collect()
os._exit(seen() is not None)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_child_of_python_s_own_fork_lets_go_of_threads() -> None:
    """Thread objects have to live for ever only after a fork in C.

    There their end would kill the child.
    """
    assert subprocess.run([sys.executable, "-c", FORKED], check=False, timeout=60).returncode == 0
