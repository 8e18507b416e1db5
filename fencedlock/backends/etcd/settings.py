"""Where an etcd cluster is, and how to come in: from a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from fencedlock.errors import ConfigurationError

DEFAULT_PORT = 2379

_ENDPOINT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/\s]+)(?::(?P<port>\d+))?")
_FILES = ("ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the cluster is, and how to come in."""

    endpoints: tuple[str, ...]
    """``host:port`` each."""
    tls: bool = False
    ca: str | None = None
    """The file of the authorities that sign the servers' certificates; without it, the system's."""
    cert: str | None = None
    """The file of our own certificate, for mutual TLS."""
    key: str | None = None
    """The file of its key."""
    user: str | None = None
    password: str | None = None


def settings_of_url(url: str) -> Settings:
    """Read ``etcd://user:password@host:2379,host2:2379`` or ``etcds://host?ca=file&cert=file&key=file``.

    Raises ConfigurationError for what can't be, and if the packages for etcd are not installed.
    """
    missing = [package for package in ("grpc", "google.protobuf") if not _is_installed(package)]
    if missing:
        raise ConfigurationError("etcd needs grpcio and protobuf: pip install 'fencedlock[etcd]'")
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    endpoints = tuple(_endpoint(host) for host in hosts.split(","))
    if parts.path.strip("/") or parts.fragment:
        raise ConfigurationError(f"an etcd URL has no path: etcd://host:{DEFAULT_PORT},host2:{DEFAULT_PORT}; keys begin with the namespace")
    if login and not (user and colon):
        raise ConfigurationError("an etcd URL names a user and a password, as etcd://user:password@host")
    tls = parts.scheme == "etcds"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = options.keys() - set(_FILES)
    if unknown or (options and not tls):
        raise ConfigurationError(
            f"{', '.join(sorted(unknown or options))!r} can't stand in an {parts.scheme}:// URL: "
            "etcds:// takes ca=, cert= and key=, a file each"
        )
    if ("cert" in options) != ("key" in options):
        raise ConfigurationError("mutual TLS needs both cert= and key=, files each")
    for name, path in options.items():
        if not Path(path).is_file():
            raise ConfigurationError(f"{name}={path!r} in the etcds:// URL is no file")
    return Settings(endpoints, tls, user=unquote(user) or None, password=unquote(password) or None, **options)


def _endpoint(host: str) -> str:
    found = _ENDPOINT.fullmatch(host)
    if found is None or int(found["port"] or DEFAULT_PORT) > 65535:
        raise ConfigurationError(f"{host!r} is no endpoint of etcd: name each as host:{DEFAULT_PORT}, apart by commas")
    return f"{found['host']}:{found['port'] or DEFAULT_PORT}"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
