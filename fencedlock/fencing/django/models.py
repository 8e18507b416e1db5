"""The table of fences as a model of Django, to read it and not to write to it."""

from __future__ import annotations

from django.db import models

from fencedlock.fencing.base import MOST_RESOURCE_BYTES
from fencedlock.fencing.django.fields import ExactTextField


class FenceRow(models.Model):
    """The columns that every table of fences has."""

    resource: ExactTextField = ExactTextField(max_length=MOST_RESOURCE_BYTES, primary_key=True)
    token: models.BigIntegerField[int, int] = models.BigIntegerField()
    lock_name: ExactTextField = ExactTextField(max_length=MOST_RESOURCE_BYTES, null=True)

    class Meta:
        """The model has no table of its own."""

        abstract = True

    def __str__(self) -> str:
        return f"{self.resource}: {self.token}"


class Fence(FenceRow):
    """A resource, the highest token that it has seen, and the lock that guards it."""

    class Meta:
        """The model's table is the one that ``DjangoFence()`` uses."""

        app_label = "fencedlock"
        db_table = "fences"
        verbose_name = "fence"
