"""Links between a process and a server. They break in the ways in which networks do.

A link passes bytes on without regard to their meaning, so it works with any server. Tests of single
packets use :mod:`tests.proxy` and :mod:`tests.etcd_proxy`, which know requests and replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

UP, DOWN = "up", "down"
"""The directions: to the server, and back from it."""


class Link:
    """All connections of one process to one server."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Callable[[], int],
        rng: random.Random,
        host: str,
    ) -> None:
        self.random = rng
        self._loop = loop
        self._target = target
        self._host = host
        self._pairs: set[_Pair] = set()
        self._silent: set[str] = set()
        self._talking = asyncio.Condition()
        self.delay_seconds: float = 0.0
        """How long each packet is under way, in both directions."""
        self.lost_share: float = 0.0
        """The share of replies that are lost. With each, all later replies of its connection are
        lost too.
        """
        self.late_share: float = 0.0
        """The share of packets to the server that arrive late. The client's end of their connection
        is cut at once.
        """
        self.late_seconds: float = 0.0
        self.port: int = asyncio.run_coroutine_threadsafe(self._listen(), loop).result(10)

    @property
    def endpoint(self) -> str:
        return f"{self._host}:{self.port}"

    def silence(self, *directions: str) -> None:
        """Keep all packets that are sent in these directions from now on, and deliver those of the
        other directions. Without directions, deliver all packets.
        """
        self._call(self._set_silent, set(directions))

    def cut(self) -> None:
        """Reset all connections. Packets that are under way are lost."""
        self._call(self._cut)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        done = threading.Event()

        def call() -> None:
            function(*arguments)
            done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait(10)

    def close(self) -> None:
        """Stop listening, and reset all connections. Call this in the loop's thread."""
        self._server.close()
        self._cut()

    def _set_silent(self, directions: set[str]) -> None:
        self._silent = directions
        self._tasks = [self._loop.create_task(self._notify())]

    async def _notify(self) -> None:
        async with self._talking:
            self._talking.notify_all()

    def _cut(self) -> None:
        for pair in list(self._pairs):
            pair.abort()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, (reader, writer), upstream)
        self._pairs.add(pair)
        try:
            await pair.run()
        except asyncio.CancelledError:
            pair.abort()  # the run has ended
        finally:
            self._pairs.discard(pair)

    async def let_pass(self, direction: str) -> None:
        """Wait until a packet that has just been sent in this direction arrives."""
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if direction in self._silent:
            async with self._talking:
                await self._talking.wait_for(lambda: direction not in self._silent)


class _Pair:
    """A connection through a link. It has an end at the client and one at the server."""

    def __init__(self, link: Link, client: Any, server: Any) -> None:
        self._link = link
        self._client_reader, self._client_writer = client
        self._server_reader, self._server_writer = server
        self._deaf = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Pass packets on until both ends have hung up.

        Packets that the client sent before it hung up still arrive. The replies to them are lost.
        """
        self._tasks = [
            asyncio.create_task(self._pump(UP, self._client_reader, self._server_writer)),
            asyncio.create_task(self._pump(DOWN, self._server_reader, self._client_writer)),
        ]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in (self._client_writer, self._server_writer):
            writer.close()

    def abort(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in (self._client_writer, self._server_writer):
            writer.transport.abort()

    async def _deliver_late(self, chunk: bytes) -> None:
        self._client_writer.transport.abort()
        await asyncio.sleep(self._link.late_seconds)
        self._server_writer.write(chunk)
        self._server_writer.close()

    async def _pump(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                await self._link.let_pass(direction)
                if direction == UP and self._link.random.random() < self._link.late_share:
                    await self._deliver_late(chunk)
                    return
                if (
                    direction == DOWN
                    and self._link.random.random() < self._link.lost_share
                    and not self._deaf
                ):
                    self._deaf = True
                    # This looks like a peer that has forgotten the connection.
                    asyncio.get_running_loop().call_later(1.0, self.abort)
                if writer.transport.is_closing() or (self._deaf and direction == DOWN):
                    continue
                with contextlib.suppress(OSError):
                    writer.write(chunk)
                    await writer.drain()
            await self._link.let_pass(direction)
        writer.close()


class Network:
    """All links of a run, and the thread in which they work."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self.loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def link(self, target: Callable[[], int], rng: random.Random, host: str = "127.0.0.1") -> Link:
        self._links.append(Link(self.loop, target, rng, host))
        return self._links[-1]

    def close(self) -> None:
        """End all links."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end(self) -> None:
        for link in self._links:
            link.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports that were aborted close their sockets in a later round of the loop.
        await asyncio.sleep(0.01)
