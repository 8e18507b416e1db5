"""Runs the library's own Lua scripts on a :class:`RedisStore`, by the Lua that Redis has in it."""

from __future__ import annotations

from functools import cache
from typing import Any

from lupa.lua51 import LuaRuntime, lua_type
from redis.exceptions import ResponseError

from tests.simulation.redis_store import RedisStore


class LuaScripts:
    """The scripts that were run before, compiled."""

    def __init__(self) -> None:
        self._lua = LuaRuntime(encoding="latin-1", register_eval=False, register_builtins=False)
        self._store: RedisStore | None = None
        self._compiled: dict[str, Any] = {}
        self._lua.globals().redis = self._lua.table_from(
            {"call": self._call, "pcall": self._pcall, "error_reply": self._error}
        )

    def run(self, store: RedisStore, text: str, keys: list[str], arguments: list[str]) -> Any:
        """Run a script. Return its reply as it is on the wire, or an exception, or a list."""
        function = self._compiled.get(text)
        if function is None:
            function = self._lua.execute(f"return function(KEYS, ARGV)\n{text}\nend")
            self._compiled[text] = function
        before, self._store = self._store, store
        store.hold_time(still=True)
        try:
            made = function(self._lua.table_from(keys), self._lua.table_from(arguments))
        finally:
            store.hold_time(still=False)
            self._store = before
        return _on_the_wire(made)

    def _call(self, name: str, *arguments: Any) -> Any:
        assert self._store is not None
        texts = [each if type(each) is str else _text(each) for each in arguments]
        reply = self._store.commands[name](*texts)
        if type(reply) is str or type(reply) is int:
            return reply
        return self._in_lua(reply)

    def _pcall(self, name: str, *arguments: Any) -> Any:
        try:
            return self._call(name, *arguments)
        except Exception as error:
            return self._error(str(error))

    def _error(self, text: str) -> Any:
        return self._lua.table_from({"err": text})

    def _in_lua(self, reply: Any) -> Any:
        if reply is None:
            return False
        return self._lua.table_from([False if each is None else each for each in reply])


@cache
def lua_scripts() -> LuaScripts:
    """Return the scripts of this process. A new Lua for each world would take long."""
    return LuaScripts()


def _text(argument: float) -> str:
    """Return a number as Redis makes text of it."""
    return f"{argument:.17g}"


def _on_the_wire(made: Any) -> Any:
    if isinstance(made, str):
        return made.encode("latin-1")
    if isinstance(made, bool) or made is None:
        return 1 if made else None
    if isinstance(made, (int, float)):
        return b":%d\r\n" % int(made)
    assert lua_type(made) == "table"
    if made["ok"] is not None:
        return f"+{made['ok']}\r\n".encode("latin-1")
    if made["err"] is not None:
        return ResponseError(str(made["err"]).removeprefix("ERR "))
    return [_in_array(made[place]) for place in range(1, len(made) + 1)]


def _in_array(value: Any) -> Any:
    reply = _on_the_wire(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    return reply
