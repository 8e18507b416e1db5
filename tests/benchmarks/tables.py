"""Tables, which are printed as Markdown and stored as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Table:
    """Rows of text below a line of headings; the first column names what was measured."""

    name: str
    """The name of the file, without its ending."""
    headings: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def show(self) -> None:
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        for number, line in enumerate(lines):
            cells = [
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            print("| " + " | ".join(cells) + " |")
            if number == 0:
                print(
                    "|"
                    + "|".join(
                        "-" * (width + 1) + (":" if column else "-")
                        for column, width in enumerate(widths)
                    )
                    + "|"
                )
        print(flush=True)

    def save(self, folder: Path) -> None:
        with (folder / f"{self.name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.headings, *self.rows])


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """Return the median and the range of the ratios of values to the base. Each ratio is that of
    one round.
    """
    quotients = [value / other for value, other in zip(values, base, strict=True)]
    median = statistics.median(quotients)
    digits = 2 if median >= 0.05 else 4
    return f"{median:.{digits}f} ({min(quotients):.{digits}f}-{max(quotients):.{digits}f})"
