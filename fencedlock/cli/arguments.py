"""Types of command-line arguments."""

from __future__ import annotations

import argparse


class at_least:  # noqa: N801 - argparse shows the name in its messages
    """The type of whole numbers that are not less than ``least``."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, text: str) -> int:
        number = int(text)
        if number < self._least:
            raise argparse.ArgumentTypeError(f"must be at least {self._least}")
        return number
