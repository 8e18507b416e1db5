"""Wall clocks that a test can set, of servers: by libfaketime, which Python's own sleeping does not
survive.
"""

from __future__ import annotations

from pathlib import Path

LIBRARIES = tuple(
    Path(folder) / "libfaketimeMT.so.1"
    for folder in (
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib/faketime",
        "/usr/lib64/faketime",
    )
)


def why_not() -> str | None:
    """Why clocks can't be set here; None if they can."""
    return (
        None
        if any(library.exists() for library in LIBRARIES)
        else "the system has no libfaketime: install its package faketime"
    )


class WallClock:
    """What a process that is started with :attr:`environment` takes for the time of day."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)
        library = next(library for library in LIBRARIES if library.exists())
        self.environment: dict[str, str] = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: float) -> None:
        """From now on the process's clock is so much ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}")
        new.replace(self._file)
