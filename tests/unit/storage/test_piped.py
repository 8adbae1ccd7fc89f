"""What one thread reads and another takes: the same bytes, bounded, and ended by either side."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.storage.piped import CHUNK, Begun, Piped


class Endless:
    """Counts what is taken from it."""

    def __init__(self) -> None:
        self.chunks = 0

    def read(self, size: int = -1, /) -> bytes:
        self.chunks += 1
        return bytes(size)


class Broken:
    def __init__(self, chunks: int) -> None:
        self._left = chunks

    def read(self, size: int = -1, /) -> bytes:
        if not self._left:
            raise OSError("cut")
        self._left -= 1
        return bytes(size)


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(0, 60))
def test_the_bytes_are_the_stream_s_whatever_is_asked_for(data: bytes, size: int, begun: int) -> None:
    stream = io.BytesIO(data)
    first = stream.read(begun)
    pipe = Piped(CHUNK)
    thread = threading.Thread(target=pipe.pump, args=(stream,))
    thread.start()
    found = b"".join(iter(lambda: reader.read(size), b"")) if (reader := Begun(first, pipe)) else b""
    thread.join()
    assert found == data
    assert pipe.read() == b""


def test_a_caller_that_leaves_ends_the_thread_which_never_held_more_than_the_limit() -> None:
    stream, pipe = Endless(), Piped(3 * CHUNK)
    thread = threading.Thread(target=pipe.pump, args=(stream,))
    thread.start()
    assert pipe.read(10) == bytes(10)
    pipe.close()
    thread.join(30)
    assert not thread.is_alive()
    assert stream.chunks <= 5


def test_what_the_stream_raises_comes_after_what_it_gave() -> None:
    pipe = Piped(9 * CHUNK)
    pipe.pump(Broken(2))
    assert len(pipe.read(CHUNK)) + len(pipe.read(CHUNK)) == 2 * CHUNK
    with pytest.raises(OSError, match="cut"):
        pipe.read(1)
