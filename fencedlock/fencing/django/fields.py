"""A text that every database compares byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from fencedlock.fencing.portable import MOST_PORTABLE_CHARACTERS

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
else:
    _CharField = models.CharField  # which takes no types at run time


class ExactTextField(_CharField):
    """Text of which the database takes no two values for one: MySQL's own text types ignore case, accents and trailing blanks."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        """As the rooms of the databases have it."""
        known = {
            "mysql": f"varbinary({self.max_length})",
            "postgresql": 'pg_catalog.text COLLATE "C"',
            "sqlite": "text",
        }
        # not "text": Django would make a second index, for LIKE, which this collation does not need
        if connection.vendor in known:
            return known[connection.vendor]
        return models.CharField(max_length=MOST_PORTABLE_CHARACTERS).db_type(connection)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        """Bytes on MySQL and MariaDB."""
        value = super().get_db_prep_value(value, connection, prepared)
        return value.encode() if connection.vendor == "mysql" and isinstance(value, str) else value

    def from_db_value(self, value: Any, *_: object) -> Any:
        """Text again."""
        return bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value
