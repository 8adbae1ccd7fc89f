from __future__ import annotations

import json

import pytest

from instructpt.errors import ConfigError
from instructpt.training.encoder import TextEncoder
from instructpt.training.tokenizer import train_tokenizer

TEXTS = ["The cat sat on the mat.", "A document ends </s> here, or does it?", "naïve café \U0001f600\n\tindent"] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, vocab_size=300)
    return folder


def test_equal_texts_give_equal_bytes(folder, tmp_path):
    train_tokenizer(iter(TEXTS), tmp_path, vocab_size=300)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_encoding_adds_nothing_and_decodes_back(folder):
    encoder = TextEncoder(folder)
    assert (encoder.bos, encoder.eos, encoder.pad) == (0, 1, 2)
    assert encoder.vocab_size == 300
    for text, ids in zip(TEXTS[:3], encoder.encode(TEXTS[:3]), strict=True):
        assert not set(ids.tolist()) & {0, 1, 2}
        assert encoder._backend.decode(ids.tolist()) == text


def test_special_strings_mean_tokens_only_where_marked(folder):
    encoder = TextEncoder(folder)
    plain, marked = encoder.encode(["a</s>"])[0], encoder.encode(["a</s>"], marked=True)[0]
    assert marked.tolist()[-1] == encoder.eos
    assert encoder.eos not in plain.tolist()


def test_transformers_loads_it_and_agrees(folder):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(folder))
    assert loaded(TEXTS[0])["input_ids"] == TextEncoder(folder).encode([TEXTS[0]])[0].tolist()
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")


def test_text_beyond_the_cap_is_left_out_and_said(tmp_path):
    made = train_tokenizer(TEXTS, tmp_path, vocab_size=300, max_bytes=200)
    assert made.capped
    assert made.text_bytes <= 200
    assert made.documents < len(TEXTS)


def test_vocabulary_without_room_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use at least 259"):
        train_tokenizer(TEXTS, tmp_path, vocab_size=258)
    with pytest.raises(ConfigError, match="no text"):
        train_tokenizer([], tmp_path, vocab_size=300)


def test_a_tokenizer_without_eos_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    with pytest.raises(ConfigError, match="end-of-sequence"):
        TextEncoder(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer that can be read"):
        TextEncoder(tmp_path)


def test_tags_get_a_token_each_and_are_ordinary_text(tmp_path):
    from transformers import AutoTokenizer

    tags = ("<CON>", "</CON>", "<QUE>", "<ANS>", "</END>")
    made = train_tokenizer(TEXTS, tmp_path, vocab_size=300, tags=tags)
    assert made.vocab_size <= 300
    encoder = TextEncoder(tmp_path)
    text = "<QUE> Where? <ANS> The mat. </END>"
    for marked in (False, True):
        ids = encoder.encode([text], marked=marked)[0].tolist()
        assert encoder._backend.decode(ids, skip_special_tokens=True) == text
        assert sum(encoder._backend.id_to_token(i) in tags for i in ids) == 3
    assert AutoTokenizer.from_pretrained(str(tmp_path))(text)["input_ids"] == ids
