"""A server that speaks TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.servers import RedisServer, free_port


@pytest.fixture
def tls(own_server: Callable[..., Any], tmp_path: Path) -> tuple[RedisServer, int, Path]:
    """A server with an additional port for TLS, that port, and the authority's certificate."""
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    settings = {
        "tls_port": str(port),
        "tls_cert_file": "own.pem",
        "tls_key_file": "own.pem",
        "tls_ca_cert_file": "ca.pem",
    }
    files = {
        key: str(tmp_path / value) if key.endswith("file") else value
        for key, value in settings.items()
    }
    try:
        return own_server("redis", tls_auth_clients="no", **files), port, tmp_path / "ca.pem"
    except RuntimeError:
        pytest.skip("the system's redis-server is built without TLS")
