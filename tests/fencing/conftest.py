"""Databases for the tests of fences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import DatabaseServer
from tests.fencing.stores import STORES, Database, Store


@pytest.fixture
def new_database(
    database_server: Callable[[str], DatabaseServer], tmp_path: Path
) -> Callable[[str], Database]:
    """A function that makes an empty database for this test alone."""

    def make(kind: str) -> Database:
        if kind == "sqlite":
            return {"path": str(tmp_path / "store.db")}
        return database_server(kind).new_database()

    return make


@pytest.fixture
def open_store(new_database: Callable[[str], Database]) -> Iterator[Callable[..., Store]]:
    """A function that opens a store by its name in STORES, and prepares a new database for it.

    With a ``database``, it opens that database, which must be prepared.
    """
    stores: list[Store] = []

    def make(name: str, database: Database | None = None) -> Store:
        kind = STORES[name]
        store = kind(new_database(kind.database_kind) if database is None else database)
        stores.append(store)
        if database is None:
            store.prepare()
        return store

    yield make
    for store in stores:
        store.close()
