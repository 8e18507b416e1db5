"""The guardian of an embedded server: starts redis-server, and ends it when its last client has left.

A script of its own, run as ``python guardian.py FOLDER REDIS-SERVER`` by whoever needs the server first; it uses the standard library only.

Every client process holds a shared ``flock`` on ``FOLDER/users.lock``, which the kernel gives back when the process dies, however
it dies. The guardian waits for the exclusive one: when it gets it, nobody is left, and it holds it until the server is
gone, so that a newcomer waits and then starts a new one. It prints "ready", or what went wrong, on its standard output.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

START_SECONDS = 30.0
SHUTDOWN_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.005

_PR_SET_PDEATHSIG = 1


def main(folder: Path, redis_server: str) -> None:
    """Start the server, tell the caller, and watch."""
    if os.fork():
        return  # so that the guardian is nobody's child, and no client leaves a zombie
    os.setsid()
    # Held by this process and inherited by the server: free only when no server of this folder lives.
    alive = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("another server of this folder still lives", flush=True)
        return
    server = subprocess.Popen(  # noqa: S603 - the binary was found by embedded.py
        [redis_server, *_settings(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        pass_fds=(alive,),
        preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread yet
    )
    said = _wait_until_ready(server, folder)
    print(said, flush=True)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    if said != "ready":
        server.kill()
        server.wait()
        return
    threading.Thread(target=_end_after_last_user, args=(server, folder), daemon=True).start()
    server.wait()


def _settings(folder: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(folder / "redis.sock"),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "redis.log"),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes",
        "auto-aof-rewrite-min-size": "1mb",
        "maxmemory-policy": "noeviction",
    }
    return [word for setting, value in settings.items() for word in (f"--{setting}", value)]


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies. Linux only; elsewhere it lives on."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)
    except (OSError, AttributeError):
        pass


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path) -> str:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            return f"it ended with status {server.returncode}: {_last_words(folder)}"
        if answers(folder):
            return "ready"
        time.sleep(LOOK_AGAIN_SECONDS)
    return f"it did not answer within {START_SECONDS:.0f} s: {_last_words(folder)}"


def answers(folder: Path) -> bool:
    """True if the server of the folder has loaded its data and serves."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(str(folder / "redis.sock"))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _last_words(folder: Path) -> str:
    try:
        return " | ".join((folder / "redis.log").read_text(errors="replace").splitlines()[-3:])
    except OSError:
        return "it left no log"


def _end_after_last_user(server: subprocess.Popen[bytes], folder: Path) -> None:
    users = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)
    server.terminate()
    try:
        server.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
