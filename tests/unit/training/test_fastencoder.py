from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import CorpusError
from instructpt.training import encodings
from instructpt.training.encoder import TextEncoder
from instructpt.training.fastencoder import FastEncoder, Unproved, first_difference, prove
from instructpt.training.sources import Text
from instructpt.training.tokenizer import train_tokenizer
from instructpt.training.tokenizing import SAMPLES, Differs, Tokenizing, samples
from instructpt.training.tokenshards import pack_items

TEXTS = ["The cat sat on the mat.", "A document ends </s> here, or does it?", "naïve café \U0001f600\n\tindent"] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, vocab_size=400, tags=("<QUE>", "<ANS>"))
    return folder


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    """BPE with byte fallback, spaces by the normalizer, as Llama's and Mistral's."""
    folder = tmp_path_factory.mktemp("fallback")
    special = ["<unk>", "<s>", "</s>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz.,"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("a", "t"), ("c", "at"), ("\u2581", "\u2581")]
    vocabulary = {name: number for number, name in enumerate([*names, *("".join(pair) for pair in merges)])}
    steps = [{"type": "Prepend", "prepend": "\u2581"}]
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": vocabulary, "merges": [list(pair) for pair in merges],
    }  # fmt: skip
    wire = {
        "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": steps}, "decoder": None, "model": model,
    }  # fmt: skip
    return save(folder, wire)


def save(folder, wire):
    (folder / "tokenizer.json").write_text(json.dumps(wire))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def changed(folder, target, change):
    wire = json.loads((folder / "tokenizer.json").read_text())
    change(wire)
    return save(target, wire)


@pytest.mark.parametrize("kind", ["folder", "fallback"])
def test_proved_tokenizers_agree_on_any_text(request, kind):
    oracle = TextEncoder(request.getfixturevalue(kind))
    encoders = [prove(oracle, marked=marked) for marked in (False, True)]
    assert all(isinstance(fast, FastEncoder) for fast in encoders), encoders
    pieces = st.sampled_from(
        ["the", " ", "  ", "\n", "<s>", "</s>", "<QUE>", "<", "s>", "é", "12", "'s", "\t", "\u2581"]
    )
    words = st.lists(pieces | st.text(st.characters(exclude_categories=("Cs",)), max_size=4), max_size=20).map("".join)

    @settings(max_examples=150, deadline=None)
    @given(texts=st.lists(words, min_size=1, max_size=4), fast=st.sampled_from(encoders))
    def agree(texts, fast):
        assert first_difference(fast, texts) is None

    agree()


def test_without_the_package_it_says_so(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    found = prove(TextEncoder(folder))
    assert isinstance(found, Unproved)
    assert found.reason == "package-missing"
    assert encodings.choose(TextEncoder(folder)).reason == "package-missing"


def _dropout(wire):
    wire["model"]["dropout"] = 0.1


def _strips(wire):
    wire["added_tokens"][-1]["lstrip"] = True


def _words(wire):
    wire["model"] = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "<pad>": 2, "[UNK]": 3}, "unk_token": "[UNK]"}
    wire["added_tokens"] = wire["added_tokens"][:3]


def _whitespace(wire):
    wire["pre_tokenizer"] = {"type": "Whitespace"}


@pytest.mark.parametrize("change", [_dropout, _strips, _words, _whitespace])
def test_other_kinds_are_left_to_the_oracle(folder, tmp_path, change):
    found = prove(TextEncoder(changed(folder, tmp_path, change)))
    assert isinstance(found, Unproved)
    assert found.reason == "kind-unproved"


def test_what_the_package_cannot_load_is_left_to_the_oracle(folder, tmp_path):
    def odd(wire):
        split = {"type": "Split", "pattern": {"Regex": "[a-c]+|q"}, "behavior": "Isolated", "invert": False}
        wire["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, wire["pre_tokenizer"]]}

    found = prove(TextEncoder(changed(folder, tmp_path, odd)))
    assert isinstance(found, Unproved)
    assert found.reason in ("not-loadable", "probe-mismatch")


class Wrong:
    """A backend that is right but on one text, where it loses the last token or raises."""

    def __init__(self, backend, text, *, fails=False):
        self._backend, self._text, self._fails = backend, text, fails

    def encode(self, text):
        if text == self._text and self._fails:
            raise ValueError("no")
        ids = self._backend.encode(text)
        return ids[:-1] if text == self._text else ids


def tokenized(encoder, texts, fast, *, seed="s"):
    tokenizing = Tokenizing(encoder, 64, fast=fast, seed=seed)
    return tokenizing, list(tokenizing.items(Text(parts=((text, True),)) for text in texts))


def test_both_tokenizers_give_the_same_shard(folder):
    encoder = TextEncoder(folder)
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS * 7)]
    made = []
    for fast in (prove(encoder), None):
        tokenizing, items = tokenized(encoder, texts, fast)
        made.append(
            (tokenizing.digest.hexdigest(), dict(tokenizing.counts), pack_items(items, 64, dtype="<u2", seed="s"))
        )
        assert tokenizing.sampled == (SAMPLES + 1 if fast else 0)  # two batches
    assert made[0][:2] == made[1][:2]
    assert made[0][2][1] == made[1][2][1]
    for name, array in made[0][2][0].items():
        assert np.array_equal(array, made[1][2][0][name]), name


def test_a_difference_on_a_sample_is_seen(folder):
    encoder = TextEncoder(folder)
    fast = prove(encoder)
    texts = [f"text number {number}" for number in range(50)]
    sampled = samples("s:0", 50, SAMPLES)
    wrong = FastEncoder(encoder, Wrong(fast._backend, texts[sampled[-1]]), marked=False)
    with pytest.raises(Differs, match="ids differ from token") as caught:
        tokenized(encoder, texts, wrong)
    assert caught.value.reason == "sample-mismatch"
    other = next(n for n in range(50) if n not in sampled)
    failing = FastEncoder(encoder, Wrong(fast._backend, texts[other], fails=True), marked=False)
    with pytest.raises(Differs, match="ValueError: no") as caught:
        tokenized(encoder, texts, failing)
    assert caught.value.reason == "encoding-failed"


@given(seed=st.text(max_size=5), size=st.integers(0, 40), count=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_samples_are_different_and_the_same_every_time(seed, size, count):
    found = samples(seed, size, count)
    assert found == samples(seed, size, count) == sorted(set(found))
    assert len(found) == min(size, count)
    assert all(0 <= index < size for index in found)


def test_truncation_and_padding_saved_with_a_tokenizer_do_nothing(folder, tmp_path):
    def cutting(wire):
        wire["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        wire["padding"] = {
            "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2,
            "pad_type_id": 0, "pad_token": "<pad>",
        }  # fmt: skip

    cut, whole = TextEncoder(changed(folder, tmp_path, cutting)), TextEncoder(folder)
    assert [a.tolist() for a in cut.encode(TEXTS[:3])] == [a.tolist() for a in whole.encode(TEXTS[:3])]


def test_ids_with_gaps_need_the_type_of_the_largest(folder, tmp_path):
    def far(wire):
        wire["model"]["vocab"]["a"] = 70_000

    encoder = TextEncoder(changed(folder, tmp_path, far))
    assert encoder.vocab_size == 70_001
    [item] = tokenized(encoder, ["a"], None)[1]
    assert item.tokens.tolist() == [encoder.bos, 70_000, encoder.eos]


def test_half_a_surrogate_pair_is_refused_with_its_place(folder):
    with pytest.raises(CorpusError, match=r"'\\ud800'"):
        tokenized(TextEncoder(folder), ["fine", "bad \ud800"], None)


def test_starts_of_documents_become_tokens_of_long_texts_alone(folder):
    encoder = TextEncoder(folder)
    first, second = "The cat sat on the mat. " * 20, "A document ends here, or does it? " * 20
    text = Text(parts=((f"{first}\n{second}", True),), documents=2, starts=(len(first) + 1,))
    for length, known in ((64, True), (4096, False)):
        [item] = list(Tokenizing(encoder, length).items([text]))
        assert bool(item.inner) == known
        if known:
            assert encoder._backend.decode(item.tokens[item.inner[0] : -1].tolist()) == second


@pytest.mark.parametrize("kind", ["folder", "fallback"])
def test_starts_are_those_of_the_oracles_offsets(request, kind):
    encoder = TextEncoder(request.getfixturevalue(kind))
    text = "naïve café \U0001f600\n\tindent\nThe cat <QUE> sat </s>\non the mat"
    [ids] = encoder.encode([text])
    characters = [place + 1 for place, character in enumerate(text) if character == "\n"]
    firsts = [first for first, _ in encoder._backend.encode(text, add_special_tokens=False).offsets]
    wanted = [next(n for n, first in enumerate(firsts) if first >= place) for place in characters]
    assert encoder.token_starts(text, ids, characters) == wanted


def test_earlier_records_count_as_slow_and_reasons_are_summed():
    records = [
        {"counts": {"items": 3}},
        {"counts": {"items": 5}, "encoding": {"fast": 5, "sampled": 4}},
        {"counts": {"items": 2}, "encoding": {"slow": 2, "reason": "sample-mismatch"}},
    ]
    found = encodings.Encodings.total(records)
    assert found.counts() == {
        "texts_fast": 5, "texts_slow": 5, "texts_sampled": 4, "texts_slow_earlier_version": 3,
        "texts_slow_sample_mismatch": 2,
    }  # fmt: skip
