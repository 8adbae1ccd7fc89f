"""Counting with a tokenizer that the spec names."""

from __future__ import annotations

import pytest

from instructpt.errors import ConfigError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [f"one two three {number}" for number in range(25)]


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("part", ["", "tokenizer.json"])
def test_tokens_are_counted(tmp_path, corpus, write_corpus, tokenizer, part):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", TEXTS), tokenizer=str(tokenizer / part))
    assert job.inspect().counts["tokens"] == 100
    assert [shard.counts["tokens"] for shard in job.manifest.shards] == [40, 40, 20]
    assert job.manifest.extra["tokens_estimated"] is False


@pytest.mark.parametrize(("name", "message"), [("none", "there is no tokenizer.json"), ("broken", "cannot be loaded")])
def test_a_tokenizer_that_cannot_be_loaded(tmp_path, corpus, write_corpus, name, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", TEXTS), tokenizer=str(tmp_path / name))
    with pytest.raises(ConfigError, match=f"spec.corpus.tokenizer='.*{name}': .*{message}"):
        job.run()
    assert not (tmp_path / "out").exists()
