"""The app to be named in INSTALLED_APPS: ``"fencedlock.fencing.django"``."""

from __future__ import annotations

from django.apps import AppConfig


class FencingConfig(AppConfig):
    """Brings the table of fences by its migration."""

    name: str = "fencedlock.fencing.django"
    label: str = "fencedlock"
    verbose_name: str = "Fences"
    default_auto_field: str = "django.db.models.BigAutoField"
