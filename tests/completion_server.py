"""A completions API on a loopback port, for the engine ``openai``: answers, stumbles and dies as it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import synthesis_support as support

Answer = tuple[int, dict[str, Any] | str, dict[str, str]]
Script = Callable[[int, dict[str, Any]], "Answer | None | Awaitable[Answer | None]"]


def completion(text: str = support.GOOD, reason: str = "stop", **more: Any) -> Answer:
    return 200, {"choices": [{"text": text, "finish_reason": reason, **more}]}, {}


class Server:
    """HTTP/1.1 on a loopback port; ``script`` answers each completion by its number."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.holds_first = False
        self.owner = ""
        self._second = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die: drop every connection."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines) if k}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                answer = await self._answer(first, headers, body)
                if answer is None:
                    writer.transport.abort()
                    return
                status, content, extra = answer
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                more = "".join(f"{k}: {v}\r\n" for k, v in extra.items())
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{more}\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, first: str, headers: dict[str, str], body: bytes) -> Answer | None:
        self.headers.append(headers)
        if first.startswith("GET"):
            return 200, {"data": [{"id": "served", "owned_by": self.owner}]}, {}
        content = json.loads(body)
        self.asked.append(content)
        number = len(self.asked)
        if number == 2:
            self._second.set()
        if self.holds_first and number == 1:
            await self._second.wait()
        answer = self.script(number, content)
        return await answer if isinstance(answer, Awaitable) else answer


@contextmanager
def in_thread(server: Server) -> Iterator[Server]:
    """The server in a thread of its own, for callers that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
        yield server
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
