from __future__ import annotations

import pytest
from api_cases import SECRETS
from hypothesis import given
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.storage.url import Location, Scheme, check_key, has_glob, join_uri, parse_uri, relative_key


@pytest.mark.parametrize(
    ("uri", "scheme", "bucket", "path", "text"),
    [
        ("data/raw", "file", "", "data/raw", "data/raw"),
        ("/data/raw/", "file", "", "/data/raw", "/data/raw"),
        ("/", "file", "", "/", "/"),
        (".", "file", "", ".", "."),
        ("~/data", "file", "", "~/data", "~/data"),
        ("file:///data/a%20b", "file", "", "/data/a b", "/data/a b"),
        ("file://localhost/data", "file", "", "/data", "/data"),
        ("s3://bucket", "s3", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "s3", "bucket", "", "s3://bucket"),
        ("S3://bucket/a/b/", "s3", "bucket", "a/b", "s3://bucket/a/b"),
        ("s3://bucket/part-?.gz", "s3", "bucket", "part-?.gz", "s3://bucket/part-?.gz"),
        ("memory://name/a", "memory", "name", "a", "memory://name/a"),
    ],
)
def test_parse(uri, scheme, bucket, path, text):
    location = parse_uri(uri)
    assert location == Location(scheme=Scheme(scheme), bucket=bucket, path=path)
    assert location.uri == text


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("gs://bucket/a", "gs:// is not a storage"),
        ("https://host/a", "https:// is not a storage"),
        ("s3:/bucket/a", "too few slashes"),
        ("s3:bucket", "too few slashes"),
        ("s3://", "needs a bucket name"),
        ("s3:///a", "needs a bucket name"),
        ("s3://bu cket/a", "needs a bucket name"),
        ("s3://bucket?x=1/a", "query"),
        ("s3://bucket/a?versionId=1", "query"),
        ("s3://bucket#f", "query"),
        ("file://host/a", "another host"),
    ],
)
def test_refused(uri, message):
    with pytest.raises(ConfigError, match=message):
        parse_uri(uri)


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_are_refused_and_not_repeated(uri):
    with pytest.raises(ConfigError, match="must not hold credentials") as caught:
        parse_uri(uri)
    assert "secret" not in str(caught.value).replace("secretRef", "")


@pytest.mark.parametrize(
    "uri",
    [
        "gs://secret/a",
        "s3:/secret/a",
        "s3:secret",
        "s3://sec ret/a",
        "s3://secret?x=1/a",
        "file://secret/a",
        "s3:///secret",
    ],
)
def test_what_is_refused_is_never_repeated(uri):
    """A part of it may be a secret that does not look like one."""
    with pytest.raises(ConfigError) as caught:
        parse_uri(uri)
    assert "secret" not in str(caught.value)
    assert "sec ret" not in str(caught.value)


def test_an_at_sign_and_a_colon_in_a_key_are_no_credentials():
    assert parse_uri("s3://bucket/me@example.org/12:30.jsonl").path == "me@example.org/12:30.jsonl"
    assert parse_uri("/data/me@example.org").path == "/data/me@example.org"


@pytest.mark.parametrize(
    ("uri", "folder", "key"),
    [
        ("a.jsonl", ".", "a.jsonl"),
        ("data/a.jsonl", "data", "a.jsonl"),
        ("/a.jsonl", "/", "a.jsonl"),
        ("/", "/", ""),
        ("..", "..", ""),
        ("data/*.gz", "data", "*.gz"),
        ("data/*/x/*.gz", "data", "*/x/*.gz"),
        ("*.gz", ".", "*.gz"),
        ("s3://b", "s3://b", ""),
        ("s3://b/a", "s3://b", "a"),
        ("s3://b/x/y/a.gz", "s3://b/x/y", "a.gz"),
        ("s3://b/x/**/a?.gz", "s3://b/x", "**/a?.gz"),
        ("s3://b/[ab]/c", "s3://b", "[ab]/c"),
    ],
)
def test_split(uri, folder, key):
    location, found = parse_uri(uri).split()
    assert (location.uri, found) == (folder, key)


def test_join():
    assert join_uri("s3://b", "a/", "", "c.json") == "s3://b/a/c.json"
    assert join_uri("s3://b/p/", "a") == "s3://b/p/a"
    assert join_uri("data/", "a", "b") == "data/a/b"
    assert join_uri("/", "a") == "/a"
    assert join_uri("s3://b/p") == "s3://b/p"
    with pytest.raises(ConfigError, match="no object key"):
        join_uri("s3://b/p", "../q")


def test_relative():
    assert relative_key("s3://b/p/a/c", "s3://b/p") == "a/c"
    assert relative_key("s3://b/p", "s3://b/p/") == ""
    assert relative_key("s3://b/p", "s3://b") == "p"
    assert relative_key("/data/a/b", "/data") == "a/b"
    assert relative_key("/a", "/") == "a"
    for other in ("s3://b/pq", "s3://c/p/a", "/p/a"):
        with pytest.raises(ConfigError, match="does not lie below"):
            relative_key(other, "s3://b/p")


segment = st.text(st.characters(codec="utf-8", exclude_characters="/*?[\0"), min_size=1, max_size=8).filter(
    lambda s: s not in (".", "..", "~") and not s.startswith(".instructpt-tmp-") and s.strip("/ ")
)


@given(
    root=st.sampled_from(["s3://b", "s3://b/p/q", "/data", "memory://n"]),
    parts=st.lists(segment, min_size=1, max_size=4),
)
def test_join_split_and_relative_agree(root, parts):
    key = "/".join(parts)
    whole = parse_uri(root).join(*parts)
    assert check_key(key) == key
    assert parse_uri(root).relative(whole) == key
    folder, last = whole.split()
    assert folder.join(last) == whole


def test_has_glob():
    assert [has_glob(t) for t in ("a*", "a?", "[a]", "a")] == [True, True, True, False]
