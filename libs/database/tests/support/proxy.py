"""A network that fails when it is told to: a proxy on loopback between a test and its server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
_CHUNK = 65536


@dataclass(eq=False)
class _Pair:
    """A client's connection, and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    caught: bool = False
    """Whether the text to catch has passed, and the server's answer is what is waited for."""

    def reset(self) -> None:
        """End both with a RST, as a router does that has forgotten them."""
        for writer in (self.client, self.server):
            ended: socket.socket | None = writer.get_extra_info("socket")
            if ended is not None and not writer.transport.is_closing():
                ended.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@dataclass(eq=False)
class _Catch:
    """What to look for in what clients send, and what to do then."""

    text: bytes
    answer: bool
    drop: bool
    seen: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """A proxy in a thread of its own; its methods may be called from any other and have taken effect on return."""

    def __init__(self, port: int, server_port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.port = port
        """Where it listens, on 127.0.0.1."""
        self._server_port = server_port
        self._loop = loop
        self._flows = asyncio.Event()
        self._flows.set()
        self._pairs: set[_Pair] = set()
        self._catch: _Catch | None = None
        self._delay = 0.0

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._within(lambda: len(self._pairs))

    def stall(self) -> None:
        """Let nothing through any more, in either direction, and no connection end; new ones are accepted and stall."""
        self._within(self._flows.clear)

    def resume(self) -> None:
        """Let through what has been waiting, and all that follows."""
        self._within(self._flows.set)

    def drop(self) -> None:
        """End every connection with a RST; what has been waiting is lost, and nothing is to be caught any more."""
        self._within(self._drop)

    def slow(self, delay: float) -> None:
        """Let every piece of data wait for that many seconds on its way, in each direction."""
        self._within(lambda: setattr(self, "_delay", delay))

    def catch(self, text: bytes, *, answer: bool, drop: bool = False) -> threading.Event:
        """Stall, or drop all connections, when a client sends something with `text` in it, once.

        :param answer: whether what the client sent reaches the server, and the server's answer is what is kept back.
            The event is set when that answer has come, so that the server has done what it was told.
        :param drop: drop all connections then, instead of stalling.

        Return an event that is set when it has happened.
        """
        caught = _Catch(text, answer, drop)
        self._within(lambda: setattr(self, "_catch", caught))
        return caught.seen

    def _within(self, function: Callable[[], T]) -> T:
        """Call a function in the proxy's own thread."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def _drop(self) -> None:
        for pair in self._pairs:
            pair.reset()
        self._catch = None
        self._flows.set()

    def _spring(self, catch: _Catch) -> None:
        self._catch = None
        if catch.drop:
            self._drop()
        else:
            self._flows.clear()
        catch.seen.set()

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        try:
            ways = (self._pass(pair, from_client, server), self._pass(pair, from_server, client))
            await asyncio.gather(*(asyncio.ensure_future(way) for way in ways))
        finally:
            self._pairs.discard(pair)
            for writer in (client, server):
                writer.close()

    async def _pass(self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass on what comes from one side, until it ends or the connection is broken."""
        from_client = sink is pair.server
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                self._look(pair, data, from_client)
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                if sink.transport.is_closing():
                    break
                sink.write(data)
                await sink.drain()
        await self._flows.wait()
        # An end goes through as well.
        sink.close()

    def _look(self, pair: _Pair, data: bytes, from_client: bool) -> None:
        catch = self._catch
        if catch is None:
            return
        if from_client and catch.text in data:
            if catch.answer:
                pair.caught = True
            else:
                self._spring(catch)
        elif not from_client and pair.caught:
            self._spring(catch)


@contextlib.contextmanager
def running(server_port: int) -> Iterator[Proxy]:
    """Yield a proxy in front of the server that listens on 127.0.0.1 at `server_port`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()

    async def start() -> tuple[Proxy, asyncio.Server]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        proxy = Proxy(port, server_port, loop)
        return proxy, await asyncio.start_server(proxy._serve, "127.0.0.1", port)

    async def stop() -> None:
        listening.close()
        proxy._drop()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=10)

    try:
        proxy, listening = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
