from __future__ import annotations

import pytest

from instructpt.errors import ConfigError, NotFoundError
from instructpt.storage import FilesystemStore, MemoryStore, S3Store, describe_access, expand_uri, open_store, split_uri

FILES = ["a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl", "sub/.hidden", ".DS_Store", "[x].txt"]


@pytest.fixture(params=["file", "memory"])
def root(request, tmp_path) -> str:
    uri = (
        str(tmp_path / "in") if request.param == "file" else f"memory://{tmp_path.name.replace('[', '').strip(']')}/in"
    )
    store = open_store(uri)
    for name in FILES:
        store.put(name, name.encode())
    return uri


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ("", ["[x].txt", "a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/", ["[x].txt", "a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/sub", ["c.jsonl", "deep/d.jsonl"]),
        ("/sub/", ["c.jsonl", "deep/d.jsonl"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/*.jsonl*", ["a.jsonl", "b.jsonl.gz"]),
        ("/**/*.jsonl", ["a.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("/sub/*/*.jsonl", ["deep/d.jsonl"]),
        ("/s*/c.jsonl", ["sub/c.jsonl"]),
        ("/[ab].jsonl*", ["a.jsonl", "b.jsonl.gz"]),
        ("/[!a].jsonl*", ["b.jsonl.gz"]),
        ("/?.jsonl", ["a.jsonl"]),
        ("/sub/.hidden", [".hidden"]),
    ],
)
def test_expand(root, tail, found):
    store, objects = expand_uri(root + tail)
    keys = [info.key for info in objects]
    assert keys == found
    for key in keys:
        assert store.get(key).decode().endswith(key.rsplit("/", 1)[-1])


@pytest.mark.parametrize("tail", ["/nothing", "/*.csv", "/nothing/"])
def test_nothing_there_names_the_uri(root, tail):
    with pytest.raises(NotFoundError) as caught:
        expand_uri(root + tail)
    assert root + tail in str(caught.value)


def test_open_store_by_scheme(tmp_path):
    assert isinstance(open_store(str(tmp_path)), FilesystemStore)
    assert isinstance(open_store(f"file://{tmp_path}"), FilesystemStore)
    assert isinstance(open_store("memory://x"), MemoryStore)
    assert isinstance(open_store("s3://bucket/x"), S3Store)
    assert open_store("s3://bucket/x/").uri == "s3://bucket/x"
    with pytest.raises(ConfigError, match="ftp:// is not"):
        open_store("ftp://x")


def test_split_uri(tmp_path):
    store, key = split_uri("s3://bucket/x/a.gz")
    assert (store.uri, key) == ("s3://bucket/x", "a.gz")


def test_a_folder_needs_no_credentials(tmp_path):
    assert describe_access(str(tmp_path)) == ""


def test_memory_stores_of_a_name_share_their_objects():
    open_store("memory://shared/a").put("k", b"1")
    assert open_store("memory://shared").get("a/k") == b"1"
    assert not open_store("memory://other").exists("a/k")
