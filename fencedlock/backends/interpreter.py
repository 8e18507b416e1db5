"""Finds a Python interpreter that can run a script, even where ``sys.executable`` is not one.

In an application that is frozen by PyInstaller, ``sys.executable`` is the application, so using it
to run a script would start the application again. In a program that embeds Python, such as uWSGI,
``sys.executable`` is that program, None or empty.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fencedlock.errors import ConfigurationError

_PYTHON = re.compile(r"(python|pypy|graalpy)[\d.]*[a-z]{0,2}(-dbg|-debug)?", re.IGNORECASE)


def command_for(module: ModuleType) -> list[str]:
    """Return the words of a command that runs the module as a script.

    The module may import only the standard library.

    Raises ConfigurationError if there is no interpreter, or no source of the module.
    """
    # The interpreter is isolated, so that neither environment variables nor site-packages can
    # disturb it.
    return [_find_python(), "-I", "-S", *_script(module)]


def environment() -> dict[str, str]:
    """Return the environment for other programs.

    PyInstaller puts its own libraries before the system's. This environment is without them.
    """
    found = dict(os.environ)
    if getattr(sys, "frozen", False):
        for variable in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
            before = found.pop(f"{variable}_ORIG", None)
            found.pop(variable, None)
            if before:
                found[variable] = before
    return found


def _find_python() -> str:
    for candidate in _candidates():
        if (
            _PYTHON.fullmatch(Path(candidate).name)
            and os.access(candidate, os.X_OK)
            and not _is_this_application(candidate)
        ):
            return candidate
    raise ConfigurationError(
        "embedded:// needs a Python interpreter to watch over its server, and there is none "
        f"(sys.executable is {sys.executable!r}): put a python3 on PATH, or run a redis-server "
        "yourself and use its URL"
    )


def _candidates() -> Iterator[str]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for known in (sys.executable, getattr(sys, "_base_executable", None)):
        if known:
            yield known
    for prefix in dict.fromkeys((sys.exec_prefix, sys.base_exec_prefix)):
        for name in (version, "python3", "python"):
            yield str(Path(prefix, "bin", name))
    for name in (version, "python3"):
        found = shutil.which(name)
        if found:
            yield found


def _is_this_application(candidate: str) -> bool:
    if not getattr(sys, "frozen", False) or not sys.executable:
        return False
    try:
        return Path(candidate).samefile(sys.executable)
    except OSError:
        return False


def _script(module: ModuleType) -> list[str]:
    if module.__file__ and Path(module.__file__).is_file():
        return [module.__file__]
    # The module may be in a zip file.
    source = getattr(module.__loader__, "get_source", lambda _: None)(module.__name__)
    if source:
        return ["-c", source]
    raise ConfigurationError(
        f"embedded:// needs the source of {module.__name__}, which this application does not "
        "carry: have it packed with the application (PyInstaller: "
        "collect_data_files('fencedlock', include_py_files=True)), or run a redis-server yourself "
        "and use its URL"
    )
