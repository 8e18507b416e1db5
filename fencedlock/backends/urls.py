"""Parser for the URLs of lock servers.

:attr:`Address.shown` is the part of a URL that gives no access and may be shown.

This module splits the text by itself, and not with ``urllib``, for three reasons: ``urllib`` quotes
parts of the URL in its errors, and a password may be among them; its newest versions refuse a list
of hosts that contains an IPv6 address; and it drops line ends silently.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from fencedlock.errors import ConfigurationError

SETTINGS = ("ttl", "namespace", "outage_timeout", "socket_timeout", "token_memory")
"""The settings of this library. The query of every URL may contain them."""

MOST_PORT = 65535

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY_END = re.compile(r"[/?#]")
_HOST = re.compile(
    r"(?P<text>\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z%._~-]+)?\]|[^\[\]:@\s]*)(?::(?P<port>[0-9]{1,5}))?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NEVER_IN_HOSTS = re.compile(r"[\x00-\x20\x7f/?#@,\[\]]")
_PLAIN_PATH = re.compile(r"/?[0-9]*")
_OPTION_NAME = re.compile(r"[a-z][a-z_]{0,39}")

_ENCODE = (
    "percent-encode each of : / ? # @ % and blanks in a user name, a password and an option, as "
    "urllib.parse.quote(text, safe='') does"
)


class Host(NamedTuple):
    """One host of a URL."""

    text: str
    """The host as it is written in the URL. An IPv6 address keeps its brackets."""
    port: int | None

    @property
    def name(self) -> str:
        """The host without brackets and percent-encoding."""
        return unquote(self.text.strip("[]"))

    def __str__(self) -> str:
        return self.text if self.port is None else f"{self.text}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """The parts of a URL."""

    scheme: str
    hosts: tuple[Host, ...]
    """At least one host. If the URL names none, it is one with an empty text and without a port."""
    path: str
    user: str | None
    password: str | None
    options: dict[str, str] = field(default_factory=dict)
    """The options in the query, with decoded names and values."""
    ambiguous: bool = False
    """True if there is an @ after the first slash, question mark or hash. What looks like the host
    may then be the beginning of a password.
    """
    where: str = ""
    """Words that follow the URL in errors and say where it comes from. Empty for an argument."""

    @property
    def shown(self) -> str:
        """The scheme, hosts, ports and database of the URL, and nothing else.

        For a socket or a folder, its path is included.
        """
        path, database = "", self.options.get("db", "")
        if self.scheme in ("unix", "embedded"):
            path = self.path + (f"?db={database}" if database.isdecimal() else "")
        elif database.isdecimal():
            path = f"/{database}"
        elif _PLAIN_PATH.fullmatch(self.path):
            path = self.path
        return f"{self.scheme}://{','.join(map(str, self.hosts))}{path}"

    def __repr__(self) -> str:
        return f"Address({self.described})"

    @property
    def described(self) -> str:
        """The URL as errors name it. Of an ambiguous URL, they show only the scheme."""
        return _described(self.scheme, None if self.ambiguous else self.shown, self.where)

    def error(self, problem: str) -> ConfigurationError:
        """Return an error about this URL. ``problem`` says what is wrong, and what to do."""
        return ConfigurationError(f"{self.described} {problem}")

    def refuse_other_options(self, known: Collection[str], takes: str) -> None:
        """Raise ConfigurationError if the query has an option that is not known.

        The options in ``known`` and in :data:`SETTINGS` are known. ``takes`` says in the error
        which options the query may have.
        """
        names = {*known, *SETTINGS}
        for number, (name, value) in enumerate(self.options.items(), 1):
            if name in names:
                continue
            from difflib import get_close_matches

            # The name is shown only if it can't be part of a password. A password that is not
            # percent-encoded may end in a piece that looks like the name of an option.
            harmless = value and not self.ambiguous and _OPTION_NAME.fullmatch(name)
            which = (
                f"the unknown option {name}= in its query"
                if harmless
                else f"an unknown option in its query, number {number}"
            )
            near = get_close_matches(name, sorted(names), 1)
            advice = f"did you mean {near[0]}=? " if near else ""
            own = ", ".join(f"{setting}=" for setting in SETTINGS)
            encode = f". If it is part of a password, {_ENCODE}" if self.ambiguous else ""
            raise self.error(
                f"has {which}: {advice}{takes}; and the settings of this library are {own}{encode}"
            )


def scheme_of(url: str) -> str:
    """Return the text before ``://`` in lower case, or an empty text if this is not a URL."""
    found = _SCHEME.match(url.strip())
    return "" if found is None else found[1].lower()


def parsed(url: str, where: str = "") -> Address:
    """Return the parts of a URL.

    White space around the URL is dropped, for example the last line end of a file.

    Raises ConfigurationError if the text is not a valid URL. Neither the message nor a chained
    error quotes the URL.
    """
    scheme, text = scheme_of(url), url.strip()
    blamed = _described(scheme, None, where)
    if not scheme:
        raise ConfigurationError(f"{blamed} has no scheme: write it as redis://host:6379/0")
    if _CONTROL.search(text):
        raise ConfigurationError(
            f"{blamed} has a line end or another control character in it: remove it, or "
            "percent-encode it"
        )
    text = text[len(scheme) + len("://") :]
    end = _AUTHORITY_END.search(text)
    authority, rest = (text, "") if end is None else (text[: end.start()], text[end.start() :])
    if "#" in rest:
        raise ConfigurationError(
            f"{blamed} has a # in it, which must be percent-encoded: {_ENCODE}"
        )
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    path, _, query = rest.partition("?")
    return Address(
        scheme,
        tuple(_host(host, number, blamed) for number, host in enumerate(hosts.split(","), 1)),
        unquote(path),
        unquote(user) or None,
        unquote(password) or None,
        _options(query, blamed),
        ambiguous="@" in rest,
        where=where,
    )


def without_password(url: str) -> str:
    """Return the part of the URL that may be shown."""
    try:
        return parsed(url).shown
    except ConfigurationError:
        scheme = scheme_of(url)
        return f"{scheme}://..." if scheme else "..."


def _described(scheme: str, shown: str | None, where: str) -> str:
    url = f"the URL {shown!r}" if shown else f"the {scheme}:// URL" if scheme else "the URL"
    return f"{url} {where}" if where else url


def _host(text: str, number: int, blamed: str) -> Host:
    found = _HOST.fullmatch(text)
    host = (
        None
        if found is None
        else Host(found["text"], None if found["port"] is None else int(found["port"]))
    )
    if (
        host is None
        or _NEVER_IN_HOSTS.search(host.name)
        or not 1 <= (1 if host.port is None else host.port) <= MOST_PORT
    ):
        raise ConfigurationError(
            f"{blamed} has an invalid host, number {number}: write it as host:port, with a port "
            f"from 1 to {MOST_PORT}, and an IPv6 address in brackets. If it is part of a password, "
            f"{_ENCODE}"
        )
    return host


def _options(query: str, blamed: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ConfigurationError(f"{blamed} has an option twice in its query: keep one")
    return options
