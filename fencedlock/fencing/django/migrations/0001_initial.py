"""The table of fences."""

from typing import ClassVar

from django.db import migrations, models
from django.db.migrations.operations.base import Operation

from fencedlock.fencing.django.fields import ExactTextField


class Migration(migrations.Migration):
    """Makes the table that ``DjangoFence()`` uses."""

    initial: ClassVar[bool | None] = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Operation]] = [
        migrations.CreateModel(
            name="Fence",
            fields=[
                ("resource", ExactTextField(max_length=2600, primary_key=True, serialize=False)),
                ("token", models.BigIntegerField()),
                ("lock_name", ExactTextField(max_length=2600, null=True)),
            ],
            options={"db_table": "fences", "verbose_name": "fence"},
        ),
    ]
