from __future__ import annotations

import io
import threading

import pytest

from instructpt.errors import NotFoundError
from instructpt.storage import MemoryStore, S3Store, map_ahead, open_all, parse_uri
from instructpt.storage.ahead import ReadAhead, Width

SECONDS = 10


class Gated:
    """A store that notes which objects are open and lets a stream go on only when it may."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.opened: list[str] = []
        self.read: dict[str, int] = dict.fromkeys(sizes, 0)
        self.may: dict[str, threading.Event] = {key: threading.Event() for key in sizes}
        self.changed = threading.Condition()

    def open(self, key: str, **_: object) -> io.BytesIO:
        with self.changed:
            self.opened.append(key)
            self.changed.notify_all()
        assert self.may[key].wait(SECONDS)
        store, size = self, self.sizes[key]

        class Counted(io.BytesIO):
            def read(self, count: int | None = -1, /) -> bytes:
                data = super().read(count)
                with store.changed:
                    store.read[key] += len(data)
                    store.changed.notify_all()
                return data

        return Counted(key[:1].encode() * size)

    def wait(self, condition) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, SECONDS)


def fixed(value: int) -> Width:
    """A width that stays."""
    width = Width(value)
    width.value = value
    return width


def test_objects_come_in_the_order_of_their_names_whichever_is_there_first():
    store = Gated({"a": 3, "b": 2, "c": 1})
    with ReadAhead(store, "abc", width=fixed(3)) as streams:
        found = iter(streams)
        opening = threading.Thread(target=lambda: got.append(next(found).read()))
        got: list[bytes] = []
        opening.start()
        store.wait(lambda: len(store.opened) == 3)
        for key in "cba":
            store.may[key].set()
        opening.join(SECONDS)
        assert got == [b"aaa"]
        assert [stream.read() for stream in found] == [b"bb", b"c"]


def test_no_more_requests_are_under_way_than_threads_and_names_are_taken_as_needed():
    taken: list[int] = []
    store = Gated({str(number): 1 for number in range(100)})
    for event in store.may.values():
        event.set()

    def keys():
        for number in range(100):
            taken.append(number)
            yield str(number)

    with ReadAhead(store, keys(), width=fixed(4)) as streams:
        for number, stream in enumerate(streams):
            assert len(taken) <= number + 4
            assert stream.read() == str(number)[:1].encode()
    assert len(taken) == 100
    assert sorted(store.opened, key=int) == [str(number) for number in range(100)]


def test_a_large_object_waits_in_memory_only_up_to_its_share():
    size, share = 20 << 20, 2 << 20
    store = Gated({"large": size, "next": 5 << 20})
    for event in store.may.values():
        event.set()
    with ReadAhead(store, ["large", "next"], width=fixed(2), share_bytes=share) as streams:
        found = iter(streams)
        stream = next(found)
        # A chunk is read before it is seen that there is no room for it.
        store.wait(lambda: store.read["large"] > share and store.read["next"] > share)
        assert store.read == {"large": share + (1 << 20), "next": share + (1 << 20)}
        total = 0
        while data := stream.read(300_000):
            assert len(data) <= 300_000
            total += len(data)
        assert total == size
        assert len(next(found).read()) == 5 << 20


def test_an_error_is_raised_where_its_object_is_read_and_not_before():
    store = MemoryStore()
    store.put("a", b"1")
    store.put("c", b"3")
    with ReadAhead(store, "abc", width=fixed(3)) as streams:
        found = iter(streams)
        assert next(found).read() == b"1"
        missing = next(found)
        with pytest.raises(NotFoundError, match="b"):
            missing.read(10)
        assert next(found).read() == b"3"


def test_leaving_early_ends_threads_that_wait_for_room():
    store = MemoryStore()
    for key in "abc":
        store.put(key, b"x" * (8 << 20))
    before = threading.active_count()
    with ReadAhead(store, "abc", width=fixed(3), share_bytes=1 << 20) as streams:
        next(iter(streams)).read(1)
    assert threading.active_count() == before


def test_a_stream_that_was_not_read_to_its_end_holds_up_nothing():
    store = MemoryStore()
    for key in "abcdef":
        store.put(key, key.encode() * (4 << 20))
    with ReadAhead(store, "abcdef", width=fixed(2), share_bytes=1 << 20) as streams:
        assert [stream.read(1) for stream in streams] == [b"a", b"b", b"c", b"d", b"e", b"f"]


def test_a_folder_is_read_without_threads(tmp_path):
    store = MemoryStore()
    store.put("a", b"1")
    store.put("b", b"2")
    before = threading.active_count()
    streams = open_all(store, ["a", "b"])
    assert [(stream.read(), threading.active_count()) for stream in streams] == [(b"1", before), (b"2", before)]
    assert list(map_ahead(store, lambda x: (x + 1, threading.current_thread()), [1])) == [(2, threading.main_thread())]


def test_calls_to_s3_run_side_by_side_and_come_in_order():
    store = S3Store(parse_uri("s3://bucket"))  # never asked: the call stands for its request
    together = threading.Barrier(8, timeout=SECONDS)

    def call(number: int) -> int:
        if number < 8:
            together.wait()
        if number == 20:
            raise NotFoundError("20 is gone")
        return number

    results = map_ahead(store, call, range(100))
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(NotFoundError, match="20 is gone"):
        next(results)


def test_a_server_next_door_is_asked_on_the_spot_and_a_far_one_side_by_side():
    near, far, away = Width(), Width(), Width(32)
    for _ in range(20):
        near.took(0.0016, 0.0012, is_large=False)
        far.took(0.0119, 0.0012, is_large=False)
        away.took(0.2, 0.001, is_large=False)
    assert (near.value, far.value, away.value) == (0, 10, 32)


def test_one_slow_answer_among_fast_ones_starts_no_threads():
    width = Width()
    for number in range(20):
        width.took(0.5 if number % 5 == 0 else 0.0016, 0.0012, is_large=False)
    assert width.value == 0


def test_more_are_under_way_once_answers_come_later_and_never_fewer():
    width = Width()
    for _ in range(9):
        width.took(0.004, 0.001, is_large=False)
    assert width.value == 4
    for _ in range(9):
        width.took(0.010, 0.001, is_large=False)
    assert width.value == 10
    for _ in range(9):
        width.took(0.001, 0.001, is_large=False)
    assert width.value == 10


def test_a_large_object_is_read_in_whole_and_those_behind_it_while_the_caller_works():
    store = MemoryStore()
    bodies = {key: key.encode() * (3 << 20) for key in "abc"}
    for key, body in bodies.items():
        store.put(key, body)
    width = Width()
    with ReadAhead(store, "abc", width=width) as streams:
        found = []
        for stream in streams:
            body = b""
            while data := stream.read(700_000):
                body += data
            found.append(body)
    assert found == [bodies[key] for key in "abc"]
    assert width.value >= 2


def test_small_objects_of_a_near_store_are_read_by_the_caller_alone():
    store = MemoryStore()
    for number in range(50):
        store.put(str(number), b"x")
    threads = set()
    inner = store.open

    def opened(key: str, **options: object):
        threads.add(threading.current_thread())
        return inner(key, **options)

    store.open = opened
    near = Width()
    near.took = lambda *_, **__: None
    with ReadAhead(store, map(str, range(50)), width=near) as streams:
        assert [stream.read() for stream in streams] == [b"x"] * 50
    assert threads == {threading.current_thread()}
