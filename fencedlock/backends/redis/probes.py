"""Finds out whether a port speaks TLS, after a connection of the other kind has failed."""

from __future__ import annotations

import socket
import ssl

PROBE_SECONDS = 1.0


def speaks_plainly(host: str, port: int) -> bool:
    """Return True if a Redis server without TLS answers there."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16)[:1] in (b"+", b"-")
    except OSError:
        return False


def speaks_tls(host: str, port: int) -> bool:
    """Return True if a server with TLS answers there, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), PROBE_SECONDS) as probe,
            context.wrap_socket(probe),
        ):
            return True
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error.reason)
    except OSError:
        return False
