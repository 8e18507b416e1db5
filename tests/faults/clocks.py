"""Wall clocks of servers that a test can set. They use libfaketime, under which Python's own
sleeping does not work.
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
    """Return the reason why clocks can't be set here. None if they can."""
    return (
        None
        if any(library.exists() for library in LIBRARIES)
        else "the system has no libfaketime: install its package faketime"
    )


class WallClock:
    """The time of day that a process sees if it is started with :attr:`environment`."""

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
        """Set the process's clock this far ahead of the machine's from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}")
        new.replace(self._file)
