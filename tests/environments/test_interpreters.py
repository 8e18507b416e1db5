"""Several interpreters in one process. Each has its own client, and they exclude each other."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

from tests.environments.conftest import Program
from tests.servers import RedisServer


@pytest.mark.parametrize("configuration", ["isolated", "legacy"])
def test_interpreters_of_one_process_exclude_each_other(
    configuration: str, server: RedisServer, program: Callable[..., Program], name: str
) -> None:
    try:
        importlib.import_module("_interpreters")
    except ImportError:
        pytest.skip("this Python has no interpreters beside the first: 3.13 and newer do")
    running = program("interpreting", server.url, name, configuration)
    running.expect("done")
    running.end()
    assert server.leftovers(name) == set()
