"""DjangoFence, for any database of Django, and an app whose migration makes the table."""

from fencedlock.fencing.django.fence import DjangoFence

__all__ = ["DjangoFence"]
