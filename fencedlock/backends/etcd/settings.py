"""The addresses and credentials of an etcd cluster, read from a URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from fencedlock.backends.urls import Address, Host, parsed
from fencedlock.errors import ConfigurationError

DEFAULT_PORT = 2379

_FILES = ("ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class Settings:
    """The addresses of an etcd cluster, and the credentials to use there."""

    endpoints: tuple[str, ...]
    """The endpoints, each as ``host:port``."""
    tls: bool = False
    ca: str | None = None
    """The file of the authorities that sign the servers' certificates. None means those of the
    system.
    """
    cert: str | None = None
    """The file of this client's own certificate, for mutual TLS."""
    key: str | None = None
    """The file of the private key of ``cert``."""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


def settings_of_url(url: str) -> Settings:
    """Return the settings in an ``etcd://`` or ``etcds://`` URL.

    Examples are ``etcd://user:password@host:2379,host2:2379`` and
    ``etcds://host?ca=file&cert=file&key=file``. Raises the same errors as :func:`settings_of`.
    """
    return settings_of(parsed(url))


def settings_of(address: Address) -> Settings:
    """Return the settings in the parsed parts of an ``etcd://`` or ``etcds://`` URL.

    Raises ConfigurationError if they are invalid, and if the packages for etcd are not installed.
    """
    missing = [package for package in ("grpc", "google.protobuf") if not _is_installed(package)]
    if missing:
        raise ConfigurationError("etcd needs grpcio and protobuf: pip install 'fencedlock[etcd]'")
    endpoints = tuple(
        _endpoint(host, number, address) for number, host in enumerate(address.hosts, 1)
    )
    if address.path.strip("/"):
        raise address.error(
            "has a path, and an etcd URL has no path: write "
            f"etcd://host:{DEFAULT_PORT},host2:{DEFAULT_PORT}; keys begin with the namespace"
        )
    if bool(address.user) != bool(address.password):
        raise address.error(
            "must name a user and a password, as etcd://user:password@host, or neither"
        )
    tls = address.scheme == "etcds"
    address.refuse_other_options(
        _FILES if tls else (), "etcds:// takes ca=, cert= and key=, a file each"
    )
    files = {name: address.options[name] for name in _FILES if name in address.options}
    if ("cert" in files) != ("key" in files):
        raise address.error("must have both cert= and key= for mutual TLS, files each")
    for name, path in files.items():
        if not Path(path).is_file():
            raise address.error(
                f"has {name}= in its query, and what that names is no file that this process can "
                "see"
            )
    return Settings(endpoints, tls, user=address.user, password=address.password, **files)


def _endpoint(host: Host, number: int, address: Address) -> str:
    if not host.text:
        raise address.error(
            f"has no endpoint of etcd as host number {number}: name each as host:{DEFAULT_PORT}, "
            "apart by commas"
        )
    return f"{host.text}:{host.port or DEFAULT_PORT}"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
