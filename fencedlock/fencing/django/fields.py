"""A field for text that every database compares byte by byte."""

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
    """A text field in which only equal texts are equal.

    MySQL's own text types ignore case, accents and trailing blanks.
    """

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        """Return the type that the database's own fence uses, or else that of a CharField."""
        known = {
            "mysql": f"varbinary({self.max_length})",
            "postgresql": 'pg_catalog.text COLLATE "C"',
            "sqlite": "text",
        }
        # PostgreSQL's type is not just "text", because Django would make a second index for LIKE
        # then. This collation does not need it.
        if connection.vendor in known:
            return known[connection.vendor]
        return models.CharField(max_length=MOST_PORTABLE_CHARACTERS).db_type(connection)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        """Return the value for the database, which is bytes on MySQL and MariaDB."""
        value = super().get_db_prep_value(value, connection, prepared)
        return value.encode() if connection.vendor == "mysql" and isinstance(value, str) else value

    def from_db_value(self, value: Any, *_: object) -> Any:
        """Return the value as text."""
        return bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value
