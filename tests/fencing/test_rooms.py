"""The fences for all kinds of stores have the same check. Those for SQL share further methods."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from fencedlock import fencing

ROOMS = {
    "postgresql": "PostgreSQLFence",
    "mysql": "MySQLFence",
    "sqlite": "SQLiteFence",
    "sqlalchemy": "SQLAlchemyFence",
    "django": "DjangoFence",
    "redis": "RedisFence",
    "memory": "MonotonicFence",
}
SQL = {"postgresql", "mysql", "sqlite", "sqlalchemy", "django"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_check(room: str) -> None:
    fence = getattr(import_module(f"fencedlock.fencing.{room}"), ROOMS[room])
    assert f"fencedlock.fencing.{room}.{ROOMS[room]}" in str(fencing.__doc__)
    parameters = list(inspect.signature(fence.check).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    assert names[-2:] == ["token", "resource"]
    assert parameters[-1].default is None
    assert len(names) == (2 if room == "memory" else 3)
    if room in SQL:
        assert inspect.signature(fence).parameters["table"].default == "fences"
        assert callable(fence.create)
        assert callable(fence.ddl)
        assert list(inspect.signature(fence.check_row).parameters)[2:] == [
            "token",
            "table",
            "key",
            "column",
        ]
