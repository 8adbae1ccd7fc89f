"""What every store promises, tried on a folder, in memory, and on two real S3 servers."""

from __future__ import annotations

import io
import itertools
import threading
import time

import pytest

from instructpt.errors import ConditionFailedError, ConfigError, NotFoundError
from instructpt.storage import FilesystemStore, MemoryStore, ObjectInfo, S3Store, Store, parse_uri
from instructpt.storage.credentials import Target

_number = itertools.count()


@pytest.fixture(params=["filesystem", "memory", "versitygw", "rclone"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def store(kind, request, tmp_path, monkeypatch) -> Store:
    if kind == "filesystem":
        return FilesystemStore(tmp_path / "root")
    if kind == "memory":
        return MemoryStore()
    server = request.getfixturevalue(f"s3_{kind}")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    location = parse_uri(f"s3://{server.bucket}/contract-{next(_number)}")
    return S3Store(location, Target(endpoint=server.endpoint))


def keys(found) -> list[str]:
    return [info.key for info in found]


def test_is_a_store(store):
    assert isinstance(store, Store)
    assert not store.uri.endswith("/")


def test_put_get_head(store):
    info = store.put("a/b.bin", b"hello")
    assert info == store.head("a/b.bin")
    assert (info.key, info.size) == ("a/b.bin", 5)
    assert store.get("a/b.bin") == b"hello"
    assert store.exists("a/b.bin")


def test_a_listing_tells_when_an_object_was_written(store, kind):
    store.put("a", b"1")
    (listed,) = store.list()
    for info in (listed, store.head("a")):
        assert info.modified is None if kind == "memory" else abs(time.time() - info.modified) < 3600


def test_empty_object(store):
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty").size == 0
    assert store.get("empty", start=3) == b""
    assert keys(store.list()) == ["empty"]


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 3, b"012"), (4, 3, b"456"), (8, 5, b"89"), (3, None, b"3456789"), (10, 2, b""), (12, None, b""), (5, 0, b"")],
)
def test_ranges(store, start, length, expected):
    store.put("digits", b"0123456789")
    assert store.get("digits", start=start, length=length) == expected
    with store.open("digits", start=start, length=length) as stream:
        assert stream.read() == expected


def test_a_negative_range_is_refused(store):
    store.put("digits", b"0123456789")
    with pytest.raises(ValueError, match="negative"):
        store.get("digits", start=-1)


def test_open_streams_lines(store):
    store.put("lines.txt", b"".join(b"line %d\n" % i for i in range(50_000)))
    with store.open("lines.txt") as stream, io.TextIOWrapper(stream) as text:
        assert sum(1 for _ in text) == 50_000


def test_missing_object(store, tmp_path):
    store.put("there", b"x")
    for call in (
        lambda: store.get("gone"),
        lambda: store.head("gone"),
        lambda: store.open("gone"),
        lambda: store.get("gone", length=0),
        lambda: store.download("gone", tmp_path / "out"),
    ):
        with pytest.raises(NotFoundError, match="gone"):
            call()
    assert not store.exists("gone")
    assert not (tmp_path / "out").exists()
    store.delete("gone")


def test_overwrite_changes_the_etag(store):
    first = store.put("k", b"one")
    second = store.put("k", b"two!")
    third = store.put("k", b"six!")
    assert store.get("k") == b"six!"
    assert len({first.etag, second.etag, third.etag}) == 3
    assert store.head("k").etag == third.etag
    assert [info.etag for info in store.list("k")] == [third.etag]


def test_delete(store):
    store.put("d/x", b"1")
    store.put("d/y", b"2")
    store.delete("d/x")
    assert not store.exists("d/x")
    assert keys(store.list()) == ["d/y"]


def test_list_is_in_key_order(store):
    names = ["a-b/1", "a.txt", "a/10", "a/2", "a/b/c", "ab", "b/é", "b/日本", "z"]
    for name in reversed(names):
        store.put(name, name.encode())
    assert keys(store.list()) == sorted(names)
    assert keys(store.list("a/")) == ["a/10", "a/2", "a/b/c"]
    assert keys(store.list("a")) == sorted(n for n in names if n.startswith("a"))
    assert keys(store.list("a/b/")) == ["a/b/c"]
    assert keys(store.list("nothing/")) == []
    for after in [*names, "a", "a/", "a/5", "zz"]:
        assert keys(store.list(start_after=after)) == sorted(n for n in names if n > after), after
    assert keys(store.list("a/", start_after="a/10")) == ["a/2", "a/b/c"]
    assert [i.size for i in store.list("b/")] == [len(n.encode()) for n in sorted(names) if n.startswith("b/")]


def test_list_goes_over_pages(store, kind):
    number = 2100 if kind == "memory" else 1005
    names = [f"p/{i:05d}" for i in range(number)]
    for name in names:
        store.put(name, b"")
    assert keys(store.list("p/")) == names
    assert keys(store.list("p/", start_after=names[2])) == names[3:]
    assert keys(itertools.islice(store.list("p/"), 3)) == names[:3]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", ".instructpt-tmp-1"])
def test_keys_no_store_can_hold(store, key):
    for call in (store.get, store.head, store.delete, lambda k: store.put(k, b"")):
        with pytest.raises(ConfigError, match="no object key"):
            call(key)


def test_create_excludes(store, kind):
    store.create("once", b"first")
    if kind == "rclone":
        assert not store.supports_conditional_create()
        return
    with pytest.raises(ConditionFailedError):
        store.create("once", b"second")
    assert store.get("once") == b"first"
    store.delete("once")
    store.create("once", b"third")
    assert store.get("once") == b"third"


def test_racing_creates_have_one_winner(store, kind):
    if not store.supports_conditional_create():
        assert kind == "rclone"
        return
    writers, rounds = 8, 10
    wins: list[list[int]] = [[] for _ in range(rounds)]
    barrier = threading.Barrier(writers)

    def write(me: int) -> None:
        for number in range(rounds):
            barrier.wait()
            try:
                store.create(f"race/{number}", b"%d" % me)
            except ConditionFailedError:
                continue
            wins[number].append(me)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(w) for w in wins] == [1] * rounds
    assert [store.get(f"race/{i}") for i in range(rounds)] == [b"%d" % w[0] for w in wins]


def test_the_probe_tells_the_servers_apart(store, kind):
    assert store.supports_conditional_create() == (kind != "rclone")
    assert keys(store.list()) == []


def test_the_probe_gives_all_threads_one_answer(store, kind):
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(store.supports_conditional_create())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [kind != "rclone"] * 6


def test_put_file_and_download_in_parts(store, tmp_path):
    content = b"".join(b"%07d\n" % i for i in range(2_300_000))  # 18.4 MB: three parts
    source = tmp_path / "source.bin"
    source.write_bytes(content)
    info = store.put_file("big/file.bin", source)
    assert info == ObjectInfo(key="big/file.bin", size=len(content), etag=store.head("big/file.bin").etag)
    target = tmp_path / "deep" / "target.bin"
    assert store.download("big/file.bin", target) == info
    assert target.read_bytes() == content
    assert store.get("big/file.bin", start=9_000_001, length=4_000_000) == content[9_000_001:13_000_001]
    with store.open("big/file.bin", start=17_000_000) as stream:
        assert stream.read() == content[17_000_000:]
    assert sorted(p.name for p in target.parent.iterdir()) == ["target.bin"]


def test_put_file_small_replaces(store, tmp_path):
    source = tmp_path / "s"
    source.write_bytes(b"small")
    store.put("k", b"before, and longer")
    assert store.put_file("k", source).size == 5
    assert store.get("k") == b"small"
    store.download("k", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == b"small"


def test_put_file_of_a_missing_file(store, tmp_path):
    with pytest.raises(NotFoundError, match="absent"):
        store.put_file("k", tmp_path / "absent")
    assert not store.exists("k")
