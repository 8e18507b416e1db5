"""The check that gevent or eventlet did not patch the standard library after our import.

If they patch it before the import, this library uses their ``threading.local`` and their locks, and
each greenlet is an owner of its own. If they patch it after the import, all greenlets of a thread
would be one owner and could enter each other's locks. So that is an error.
"""

from __future__ import annotations

import _thread
import socket
import threading

from fencedlock.errors import ConfigurationError

_socket_at_import = socket.socket
_local_at_import = threading.local
_start_at_import = _thread.start_new_thread


def raise_if_patched_too_late() -> None:
    """Raise ConfigurationError if the standard library was patched after this library's import."""
    if (
        socket.socket is not _socket_at_import
        or threading.local is not _local_at_import
        or _thread.start_new_thread is not _start_at_import
    ):
        raise ConfigurationError(
            "the standard library was patched (by gevent or eventlet) after fencedlock was "
            "imported, so greenlets could not be told apart: call gevent.monkey.patch_all() or "
            "eventlet.monkey_patch() before the import, as the first lines of the program"
        )
