"""Makes the table of nemeses and targets from the reports of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Return a CSV table for the documentation. It has a row for each nemesis and a column for each
    target, and tells what was checked and what was found.
    """
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        nemeses = report["nemeses"]
        cells[nemeses[0] if len(nemeses) == 1 else "all together", report["target"]].append(report)
    targets = list(dict.fromkeys(target for _, target in cells))
    rows = [["nemesis", *targets]]
    for name in dict.fromkeys(name for name, _ in cells):
        rows.append([name, *(_cell(cells.get((name, target), [])) for target in targets)])
    rows.append(
        [
            "in total",
            *(
                _total([r for (_, on), found in cells.items() if on == target for r in found])
                for target in targets
            ),
        ]
    )
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


def _cell(reports: Sequence[dict[str, Any]]) -> str:
    if not reports:
        return "-"
    operations = sum(report["operations"] for report in reports)
    faults = sum(report["faults"] for report in reports)
    broken = sum(len(report["violations"]) for report in reports)
    stall = max(report["longest_stall_seconds"] for report in reports)
    return f"{faults} / {operations} / {broken} / {stall:.1f} s"


def _total(reports: Sequence[dict[str, Any]]) -> str:
    return f"{sum(report['seconds'] for report in reports) / 60:.0f} min, {_cell(reports)}"
