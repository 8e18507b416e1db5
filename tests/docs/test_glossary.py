"""The words of the documentation are the names of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="the documentation is not here"
)


def glossary() -> list[str]:
    text = (ROOT / "docs" / "concepts.rst").read_text(encoding="utf-8")
    words, _, _ = text.partition("What is promised")
    return re.findall(r"^   \* - (\w+)$", words, re.MULTILINE)


def words_of(name: str) -> set[str]:
    """The words of a name: of ``LockInfo`` and of ``lock_info``, lock and info."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def names_of(tree: ast.AST) -> set[str]:
    """What is defined: classes, functions, attributes and arguments."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def test_each_word_is_a_name_in_the_code() -> None:
    words = set()
    for file in (ROOT / "fencedlock").rglob("*.py"):
        for name in names_of(ast.parse(file.read_text(encoding="utf-8"))):
            words |= words_of(name)
    for file in (ROOT / "fencedlock").rglob("*.lua"):
        for name in re.findall(
            r"^ *local (?:function )?([\w, ]+)", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            words |= words_of(name)
    assert glossary()
    assert [word for word in glossary() if word not in words] == []


def test_each_thing_of_the_core_is_a_word() -> None:
    plain = {
        "bound",
        "lock",
        "info",
        "state",
        "event",
        "busy",
        "waiting",
        "gone",
        "renewed",
        "released",
        "not",
        "ours",
        "waker",
        "thread",
        "loop",
        "calls",
        "signal",
        "ask",
        "schedules",
        "sleep",
        "pause",
        "keep",
        "tell",
    }
    """Said of answers, steps and helpers, and meant as everybody means them."""
    found = set()
    for file in (ROOT / "fencedlock" / "core").glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found |= words_of(node.name)
    assert found - plain - set(glossary()) == set()
