"""Starts programs for these tests, which need whole processes.

They patch the standard library, fork in C, or end the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from tests.servers import LockServer

PATIENCE_SECONDS = 60.0
"""The time, in seconds, after which a program that prints nothing counts as hanging.

Nothing here takes nearly as long, even on a machine with eight busy processes.
"""

ROOT = Path(__file__).parents[2]


class Program:
    """A process that prints lines, and reads lines."""

    def __init__(self, *command: str, folder: Path, **environment: str) -> None:
        self.command = command
        self._errors = folder / f"errors{len(list(folder.iterdir()))}"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                start_new_session=True,  # so that its children can be ended with it
            )
        self._said: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.rstrip("\n"))
        self._said.put("")

    @property
    def errors(self) -> str:
        """What the program has written to stderr so far."""
        return self._errors.read_text(errors="replace")

    def hear(self) -> str:
        """Return the next line that the program prints, or "" if it has ended."""
        try:
            return self._said.get(timeout=PATIENCE_SECONDS)
        except Empty:
            pytest.fail(f"{self.command} says nothing: {self.errors[-5000:]}")

    def expect(self, words: str) -> None:
        """Wait for the program's next line, and assert that it is this one."""
        heard = self.hear()
        assert heard == words, f"{heard!r}, where {words!r} was expected: {self.errors[-5000:]}"

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Wait until the program ends, assert that it succeeded, and return its stderr."""
        try:
            status = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.command} does not end: {self.errors[-5000:]}")
        errors = self.errors
        assert status == 0, f"exit status {status}: {errors[-8000:]}"
        assert "Traceback" not in errors, errors[-8000:]
        assert "ResourceWarning" not in errors, errors[-8000:]
        return errors

    def kill(self) -> None:
        """Kill the program, and all of its children that are left."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self._reader.join(10)
        self.process.stdout.close()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """A function that starts programs, which end with the test."""
    started: list[Program] = []

    def start(*words: str, **environment: str) -> Program:
        started.append(Program(*words, folder=tmp_path, **environment))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def program(command: Callable[..., Program]) -> Callable[..., Program]:
    """A function that runs a module of this folder as a program, with warnings turned on."""

    def start(module: str, *arguments: Any, **environment: str) -> Program:
        words = (
            sys.executable,
            "-X",
            "dev",
            "-m",
            f"tests.environments.{module}",
            *map(str, arguments),
        )
        return command(*words, **environment)

    return start


@pytest.fixture(params=["redis", "etcd"])
def lock_server(request: pytest.FixtureRequest) -> LockServer:
    """A lock server of each family."""
    return request.getfixturevalue("server" if request.param == "redis" else "etcd_server")  # type: ignore[no-any-return]
