"""Names tell formats; URIs tell stores. Over a store in memory."""

from __future__ import annotations

import pytest

from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus.sources import detect, locate, resolve_source
from instructpt.errors import ConfigError
from instructpt.storage import MemoryStore


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ("jsonl", None)),
        ("A.JSONL.GZ", ("jsonl", "gzip")),
        ("a.ndjson.zst", ("jsonl", "zstd")),
        ("a.json.zstd", ("jsonl", "zstd")),
        ("a.b.parquet", ("parquet", None)),
        ("a.arrow", ("arrow", None)),
        ("a.feather", ("arrow", None)),
        ("a.ipc.gz", ("arrow", "gzip")),
        ("dir.txt/a.md", ("text", None)),
        ("a.rst", ("text", None)),
        ("a", (None, None)),
        ("a.gz", (None, "gzip")),
        ("a.bin", (None, None)),
    ],
)
def test_detect(name, expected):
    assert detect(name) == expected


def test_locate():
    assert [part if isinstance(part, str) else part.uri for part in locate("s3://b/x/y.jsonl")] == [
        "s3://b",
        "x/y.jsonl",
    ]
    assert [part if isinstance(part, str) else part.uri for part in locate("/a/b")] == ["/", "a/b"]


@pytest.fixture
def store(request):
    store = MemoryStore(f"memory://{request.node.name.split('[')[0]}")
    for key in (
        "c/b.jsonl",
        "c/a.jsonl.gz",
        "c/d/e.parquet",
        "c/_meta.jsonl",
        "c/.x/y.jsonl",
        "c/z.bin",
        "other.jsonl",
    ):
        store.put(key, b"{}\n")
    return store


@pytest.mark.parametrize(
    ("path", "names", "skipped"),
    [
        ("c", ["a.jsonl.gz", "b.jsonl", "d/e.parquet"], ["z.bin"]),
        ("c/", ["a.jsonl.gz", "b.jsonl", "d/e.parquet"], ["z.bin"]),
        ("c/b.jsonl", ["b.jsonl"], []),
        ("c/*.jsonl", ["_meta.jsonl", "b.jsonl"], []),
        ("c/**/*.parquet", ["d/e.parquet"], []),
        ("*.jsonl", ["other.jsonl"], []),
    ],
)
def test_resolution(store, path, names, skipped):
    source = resolve_source(CorpusSource(uri=f"{store.uri}/{path}"))
    assert [o.name for o in source.objects] == names
    assert list(source.skipped) == skipped
    for found in source.objects:
        assert found.uri == source.root + found.name == f"{store.uri}/{found.key}"
        assert source.store.get(found.key) == b"{}\n"


def test_a_set_format_passes_over_others(store):
    source = resolve_source(CorpusSource(uri=f"{store.uri}/c", format="jsonl"))
    assert [o.name for o in source.objects] == ["a.jsonl.gz", "b.jsonl", "z.bin"]
    assert source.skipped == ("d/e.parquet",)
    with pytest.raises(ConfigError, match="no object of format text is there"):
        resolve_source(CorpusSource(uri=f"{store.uri}/c/d", format="text"))


def test_messages_name_the_field_asked_for(store):
    with pytest.raises(ConfigError, match="spec.uri='memory://.*nothing is there"):
        resolve_source(CorpusSource(uri=f"{store.uri}/none"), field="spec")
