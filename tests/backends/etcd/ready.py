"""The real etcd3 package, if it can be imported."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from tests.etcd_servers import EtcdServer


def ready_client(server: EtcdServer, **settings: Any) -> Any:
    """Return an ``etcd3.client()``, or skip the test, with the reason, if the package fails."""
    if find_spec("etcd3") is None:
        pytest.skip("etcd3 is not installed: tox run -e etcd3 tests with it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its generated code is outdated
            etcd3 = import_module("etcd3")
    except TypeError as error:
        pytest.skip(f"etcd3 can't be imported with this protobuf: {error}")
    return etcd3.client(host="127.0.0.1", port=server.port, **settings)
