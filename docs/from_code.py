"""Directives that print what the code says: its layers, and the states of a lease."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util.docutils import SphinxDirective

from fencedlock.core.lease import LEASE_TRANSITIONS, LeaseEvent, LeaseState

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent


class Layers(SphinxDirective):
    """The layers of the import contract in pyproject.toml, top first.

    Each comes with the first line of its docstring.
    """

    def run(self) -> list[Node]:
        contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
            "contracts"
        ]
        (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
        lines = [".. list-table::", "   :widths: 22 78", ""]
        for layer in layers:
            modules = layer.split(" : ")
            names = [f"``{module.removeprefix('fencedlock.')}``" for module in modules]
            lines.append(f"   * - {' and '.join(names)}")
            described = [text for module in modules for text in _described(module)]
            lines += [f"     - | {described[0]}", *(f"       | {text}" for text in described[1:])]
        return self.parse_text_to_nodes("\n".join(lines))


class LeaseTable(SphinxDirective):
    """What becomes of each state of a lease by each event."""

    def run(self) -> list[Node]:
        lines = [".. list-table::", "   :header-rows: 1", "", "   * - event"]
        lines += [f"     - {state.name}" for state in LeaseState]
        for event in LeaseEvent:
            lines.append(f"   * - {event.name}")
            after = (LEASE_TRANSITIONS.get((state, event)) for state in LeaseState)
            lines += [f"     - {'—' if state is None else state.name}" for state in after]
        return self.parse_text_to_nodes("\n".join(lines))


def _described(module: str) -> list[str]:
    """The files of a layer, each with what it is."""
    path = ROOT.joinpath(*module.split("."))
    if not path.is_dir():
        return [f"``{path.name}.py``: {_first_line(path.with_suffix('.py'))}"]
    found = [f"``{path.name}/``: {_first_line(path / '__init__.py')}"]
    for entry in sorted(path.iterdir()):
        if entry.suffix == ".py" and entry.name != "__init__.py":
            found.append(f"``{entry.name}``: {_first_line(entry)}")
        elif (entry / "__init__.py").exists():
            found.append(f"``{entry.name}/``: {_first_line(entry / '__init__.py')}")
    return found


def _first_line(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("layers", Layers)
    app.add_directive("lease-table", LeaseTable)
    return {"parallel_read_safe": True}
