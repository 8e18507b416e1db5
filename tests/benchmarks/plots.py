"""Draws the figures of the tables as SVG pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "fencedlock"  # makes the same file from the same figures

_OURS, _OTHERS = "#1f6feb", "#9aa4b2"


def bars(file: Path, title: str, unit: str, rounds: Mapping[str, Sequence[float]]) -> None:
    """Draw a bar for the median of each one's rounds, with their span. Ours have another colour."""
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.36 * len(rounds)))
    labels = list(rounds)[::-1]
    colours = [_OURS if label.startswith("fencedlock") else _OTHERS for label in labels]
    medians = [statistics.median(rounds[label]) for label in labels]
    low = [median - min(rounds[label]) for label, median in zip(labels, medians, strict=True)]
    high = [max(rounds[label]) - median for label, median in zip(labels, medians, strict=True)]
    axes.barh(labels, medians, color=colours, xerr=[low, high], ecolor="#57606a", capsize=2)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def lines(
    file: Path,
    title: str,
    across: str,
    unit: str,
    counts: Sequence[int],
    values: Mapping[str, Sequence[float]],
) -> None:
    """Draw how something grows."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for label, each in values.items():
        axes.plot(counts, each, marker="o", label=label)
    axes.set_xscale("symlog")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(unit)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
