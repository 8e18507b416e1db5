"""The app for INSTALLED_APPS, whose name there is ``"fencedlock.fencing.django"``."""

from __future__ import annotations

from django.apps import AppConfig


class FencingConfig(AppConfig):
    """The app of the fences: its migration makes their table."""

    name: str = "fencedlock.fencing.django"
    label: str = "fencedlock"
    verbose_name: str = "Fences"
    default_auto_field: str = "django.db.models.BigAutoField"
