"""A TCP proxy that delays every byte by a fixed time in each direction and limits nothing else.

python benchmarks/delay.py --upstream 9000 --seconds 0.02       # prints its port, ends when its input ends
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 18
_WAITING = 256
"""Chunks of one direction under way: 64 MiB, far above what a delay of 20 ms needs at any speed seen here."""


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seconds: float) -> None:
    clock = asyncio.get_running_loop().time
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)

    async def take() -> None:
        data = b"?"
        while data:
            try:
                data = await source.read(_CHUNK)
            except ConnectionError:
                data = b""
            await queue.put((clock() + seconds, data))

    taking = asyncio.ensure_future(take())
    try:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - clock())
            if not data:
                break
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        taking.cancel()
        with contextlib.suppress(ConnectionError):
            sink.close()


async def serve(upstream: int, seconds: float) -> None:
    """Listen on a free loopback port, print it, and serve until the input ends."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(_carry(reader, back, seconds), _carry(there, writer, seconds))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


@contextlib.contextmanager
def delayed(upstream: str, seconds: float) -> Iterator[str]:
    """The endpoint of a proxy before ``upstream``, in a process of its own."""
    port = upstream.rsplit(":", 1)[1]
    command = [sys.executable, str(Path(__file__)), "--upstream", port, "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="delay every byte by a fixed time in each direction")
    parser.add_argument("--upstream", type=int, required=True, help="loopback port of the server")
    parser.add_argument("--seconds", type=float, required=True, help="delay of each direction")
    options = parser.parse_args()
    asyncio.run(serve(options.upstream, options.seconds))


if __name__ == "__main__":
    main()
