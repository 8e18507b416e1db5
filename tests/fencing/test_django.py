"""What is special about Django: the app and its migration, table names, and other databases."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from fencedlock import ConfigurationError, FencingToken, StaleTokenError
from tests.fencing.stores import Database, django_alias

OLD, NEW = FencingToken("accounts/a", 5), FencingToken("accounts/a", 6)


@pytest.fixture(params=["postgresql", "sqlite", "mysql"])
def alias(request: pytest.FixtureRequest, new_database: Callable[[str], Database]) -> str:
    return django_alias(request.param, new_database(request.param))


@pytest.fixture(autouse=True)
def _closed(alias: str) -> object:
    from django.db import connections

    yield
    connections[alias].close()


def test_the_migration_makes_what_the_model_says(alias: str) -> None:
    from django.core.management import call_command
    from django.db import transaction

    from fencedlock.fencing.django import DjangoFence
    from fencedlock.fencing.django.models import Fence

    call_command("makemigrations", "fencedlock", check=True, dry_run=True, verbosity=0)
    printed = io.StringIO()
    call_command("sqlmigrate", "fencedlock", "0001", database=alias, stdout=printed)
    assert "CREATE TABLE" in printed.getvalue()
    call_command("migrate", "fencedlock", database=alias, verbosity=0)
    with transaction.atomic(using=alias):
        DjangoFence().check(alias, NEW)
    row = Fence.objects.using(alias).get(resource="accounts/a")
    assert (row.token, row.lock_name, str(row)) == (6, "accounts/a", "accounts/a: 6")
    assert not Fence.objects.using(alias).filter(resource="ACCOUNTS/A").exists()
    call_command("migrate", "fencedlock", "zero", database=alias, verbosity=0)


def test_a_table_of_another_name(alias: str) -> None:
    from django.db import connections, transaction

    from fencedlock.fencing.django import DjangoFence

    fence = DjangoFence("app_fences")
    assert "app_fences" in fence.ddl(alias)
    fence.create(alias)
    fence.create(connections[alias])
    with transaction.atomic(using=alias):
        fence.check(connections[alias], NEW)
    with pytest.raises(StaleTokenError), transaction.atomic(using=alias):
        fence.check(alias, OLD)
    with pytest.raises(ConfigurationError, match=r"with transaction\.atomic\(\)"):
        fence.check(alias, NEW)


def test_the_ddl_makes_the_table(alias: str) -> None:
    from django.db import connections, transaction

    from fencedlock.fencing.django import DjangoFence

    fence = DjangoFence("made_by_hand")
    with connections[alias].cursor() as cursor:
        for statement in filter(str.strip, fence.ddl(alias).split(";")):
            cursor.execute(statement)
    with transaction.atomic(using=alias):
        fence.check(alias, NEW)


def test_a_database_without_a_room_gets_plain_sql(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import connections, transaction

    from fencedlock.fencing.django import DjangoFence

    if connections[alias].vendor == "mysql":
        pytest.skip("its table keeps names as bytes, which only its own room binds")
    monkeypatch.setattr(DjangoFence, "rooms", {})
    fence = DjangoFence("plain")
    fence.create(alias)
    for token in (OLD, OLD, NEW):
        with transaction.atomic(using=alias):
            fence.check(alias, token)
    with pytest.raises(StaleTokenError) as caught, transaction.atomic(using=alias):
        fence.check(alias, OLD)
    assert caught.value.stored == 6
    with (
        pytest.raises(ConfigurationError, match="guarded by lock"),
        transaction.atomic(using=alias),
    ):
        fence.check(alias, FencingToken("other", 9), "accounts/a")


def test_bad_names_are_refused(alias: str) -> None:
    from fencedlock.fencing.django import DjangoFence

    with pytest.raises(ConfigurationError, match="can't name a schema"):
        DjangoFence("app.fences")
    with pytest.raises(ConfigurationError, match="made of letters"):
        DjangoFence("a b")
    with pytest.raises(TypeError, match="alias"):
        DjangoFence().check(object(), NEW)  # type: ignore[arg-type]
    assert repr(DjangoFence("x")) == "DjangoFence('x')"
