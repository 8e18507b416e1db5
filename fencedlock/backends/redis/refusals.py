"""What the errors of a Redis server, and of the connection to it, mean for a lock.

All meanings are in one table by error code. redis-py removes the code from errors that it knows, so
this module looks at classes as well as at words. For an error inside a script, servers before 7.0
put the code in the middle of a sentence.
"""

from __future__ import annotations

import re
import ssl
from enum import Enum, auto
from typing import Any


class Meaning(Enum):
    """What an error means for the caller."""

    PASSES = auto()
    """The server can't serve now, and is asked again within the caller's time."""
    MOVED_AWAY = auto()
    """Like PASSES, but this server is no longer the master. Every connection is closed, so that the
    name is looked up anew.
    """
    MISCONFIGURED = auto()
    """The error stays until somebody changes a setting or a permission."""
    NO_SCRIPT = auto()
    REFUSED = auto()
    """Any other error of the server."""


_PASSES = Meaning.PASSES
_MISCONFIGURED = Meaning.MISCONFIGURED

_CLUSTER_ADVICE = (
    "it is a node of a Redis Cluster, and this client is for a single server: give it the address "
    "of one, without cluster mode"
)

_BY_CODE: dict[str, tuple[Meaning, str]] = {
    "LOADING": (_PASSES, "it is loading its data"),
    "BUSY": (_PASSES, "it is busy with somebody's script"),
    "MASTERDOWN": (_PASSES, "it is a replica whose master is away"),
    "CLUSTERDOWN": (_PASSES, "its cluster is down"),
    "TRYAGAIN": (_PASSES, "its cluster is moving the keys"),
    "NOREPLICAS": (_PASSES, "it has fewer replicas than min-replicas-to-write asks for"),
    "MISCONF": (_PASSES, "it can't write to its disk: see its log and its free space"),
    "READONLY": (
        Meaning.MOVED_AWAY,
        "it is a replica: after a failover the name or address should lead to the new master",
    ),
    "MOVED": (_MISCONFIGURED, _CLUSTER_ADVICE),
    "ASK": (_MISCONFIGURED, _CLUSTER_ADVICE),
    "CROSSSLOT": (_MISCONFIGURED, _CLUSTER_ADVICE),
    "NOAUTH": (_MISCONFIGURED, "it wants a password: put it into the URL or the client"),
    "WRONGPASS": (_MISCONFIGURED, "it does not know this user or password"),
    "NOPERM": (
        _MISCONFIGURED,
        "the user lacks permissions: the documentation lists those that locks need",
    ),
    "DENIED": (_MISCONFIGURED, "it is in protected mode: set a password, or bind it to an address"),
    "NOSCRIPT": (Meaning.NO_SCRIPT, ""),
}

_BY_CLASS: dict[str, str] = {
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "ClusterCrossSlotError": "CROSSSLOT",
    "AuthenticationError": "WRONGPASS",
    "AuthenticationWrongNumberOfArgsError": "WRONGPASS",
    "AuthorizationError": "NOPERM",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
}
"""The codes of errors by their classes in redis-py and valkey-py, which remove the code."""

_BY_WORDS: tuple[tuple[str, str], ...] = (
    ("unauthenticated", "NOAUTH"),
    ("Authentication required", "NOAUTH"),
    ("ACL failure in script", "NOPERM"),  # Redis 8, Valkey 9
    ("can't run this command", "NOPERM"),
    ("can't access at least one of the keys", "NOPERM"),
    ("SELECT is not allowed in cluster mode", "MOVED"),
    ("max number of clients", "LOADING"),
    ("no password is set", "WRONGPASS"),
    ("without any password configured", "WRONGPASS"),
)

_CODE = re.compile(r"(?:^|[ :]-)([A-Z][A-Z0-9]+)(?= )")
"""Matches a code at the beginning, or after the sentence that servers before 7.0 put before it."""

_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
)
_TLS_ALERT = re.compile(r"\\x15\\x03|Protocol Error: b'\\x15|Protocol Error: b'\\x16")


def meaning_of(error: Exception) -> tuple[Meaning, str]:
    """Return what an error of the server means, and advice to show with the server's words.

    The advice is empty if nothing is known.
    """
    # What follows this is part of our own command, perhaps the name of a lock.
    words = str(error).partition(", with args beginning with")[0]
    for part, code in _BY_WORDS:
        if part in words:
            return _known(code, words)
    for code in _CODE.findall(words):
        if code in _BY_CODE:
            return _known(code, words)
    for cls in type(error).__mro__:
        if cls.__name__ in _BY_CLASS:
            return _known(_BY_CLASS[cls.__name__], words)
    return Meaning.REFUSED, ""


def _known(code: str, words: str) -> tuple[Meaning, str]:
    meaning, advice = _BY_CODE[code]
    if "max number of clients" in words or not advice:
        return meaning, ""
    return meaning, advice if code in words else f"{code}: {advice}"


def tls_fault(error: BaseException) -> str:
    """Return what is wrong with TLS on the way to the server, and what to do.

    Return an empty text if the error has nothing to do with TLS.
    """
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            break
        if isinstance(found, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {found.verify_message or found}. Name the "
                "authority that signed it, for example rediss://host?ssl_ca_certs=ca.pem, and use "
                "the host name that the certificate contains"
            )
        if isinstance(found, ssl.SSLError) and not isinstance(
            found, (ssl.SSLEOFError, ssl.SSLZeroReturnError)
        ):
            reason = found.reason or ""
            if reason in _NO_TLS:
                return "it does not speak TLS at this port: use redis://, or the port for TLS"
            if reason:
                return f"TLS fails: {reason.replace('_', ' ').lower()}"
        if _TLS_ALERT.search(str(found)):
            return "it speaks TLS at this port: use rediss://"
        found = found.__cause__ or found.__context__
    return ""


def words_of(error: BaseException) -> str:
    """Return the message of the error, or the name of its class if it has none."""
    said: Any = str(error).strip()
    return str(said) or type(error).__name__
