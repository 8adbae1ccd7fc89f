from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instructpt.api.runspec import ResolvedInput
from instructpt.errors import ConfigError
from instructpt.evaluation.generation import fit_prompt, generate_answers
from instructpt.evaluation.language_model import LanguageModel, context_length, load_model, load_untrained
from instructpt.evaluation.likelihood import continuation_bits, text_bits
from instructpt.evaluation.tasks import Example, Question
from instructpt.training.encoder import TextEncoder

TEXTS = ["The river of the stone is used.", "A", "garden\n\nwindow " * 5]


@pytest.fixture(scope="module")
def lm(make_model: Callable[..., ResolvedInput]) -> LanguageModel:
    return load_model(Path(make_model(5, steps=15).uri))


def token_by_token(lm: LanguageModel, ids: list[int], first: int) -> float:
    """Bits of ids[first:], by one forward pass a token and no batch."""
    bits = 0.0
    for place in range(first, len(ids)):
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        bits -= (logits.log_softmax(-1)[ids[place]] / math.log(2)).item()
    return bits


def test_bits_of_a_llama_are_those_token_by_token(lm: LanguageModel) -> None:
    got = text_bits(lm, TEXTS, context=256)
    assert lm.start is not None
    for text, bits in zip(TEXTS, got, strict=True):
        assert bits.bits == pytest.approx(token_by_token(lm, [lm.start, *lm.encode(text)], 1), rel=1e-5)
        assert bits.num_bytes == len(text.encode())


def test_answers_after_prompts_too(lm: LanguageModel) -> None:
    prompt = lm.encode("Notes on the river\n\nAnswer:")
    (got,) = continuation_bits(lm, [prompt], [" the stone"], context=256)
    assert lm.start is not None
    ids = [lm.start, *prompt, *lm.encode(" the stone")]
    assert got.bits == pytest.approx(token_by_token(lm, ids, 1 + len(prompt)), rel=1e-5)


@pytest.mark.parametrize("document", ["a river </s> a stone", "<s>", "</s></s> stone <s>", "the river"])
def test_documents_are_encoded_as_in_training(lm: LanguageModel, tokenizer: Path, document: str) -> None:
    encoder = TextEncoder(tokenizer)
    ids = lm.encode(document)
    assert ids == encoder.encode([document])[0].tolist()
    assert not {encoder.bos, encoder.eos} & set(ids)
    assert lm.tokenizer.decode(ids) == document


def test_an_untrained_model_is_the_same_each_time_and_near_uniform(make_model: Callable[..., ResolvedInput]) -> None:
    folder = Path(make_model(5, steps=15).uri)
    one, two = (text_bits(load_untrained(folder), TEXTS, context=64) for _ in range(2))
    assert one == two
    per_token = one[2].bits / one[2].num_tokens
    assert per_token == pytest.approx(math.log2(400), rel=0.05)
    assert one != text_bits(load_model(folder), TEXTS, context=64)


def test_greedy_answers_in_a_batch_are_those_one_by_one(lm: LanguageModel) -> None:
    prompts = [lm.encode(text) for text in ("The river of the", "Notes on the garden and the window", "A")]
    together = generate_answers(lm, prompts, max_tokens=6)
    assert together == [generate_answers(lm, [p], max_tokens=6)[0] for p in prompts]
    assert all("\n" not in answer for answer in together)
    assert any(together)


def test_prompts_give_up_examples_before_the_document_and_never_the_question(lm: LanguageModel) -> None:
    shot = Example(context="stone " * 20, question="Which?", answer="stone")
    question = Question(
        id="d?0", document="d", kind="span", context="river " * 20, question="What is it?", answer="river",
        num_options=0, shots=(shot, shot),
    )  # fmt: skip
    whole = fit_prompt(lm, question, room=1000)
    assert (whole.dropped_shots, whole.cut_tokens) == (0, 0)
    one = fit_prompt(lm, question, room=len(whole.ids) - 1)
    assert (one.dropped_shots, one.cut_tokens) == (1, 0)
    assert lm.tokenizer.decode(one.ids).endswith("Question: What is it?\nAnswer:")
    cut = fit_prompt(lm, question, room=12)
    assert cut.dropped_shots == 2
    assert cut.cut_tokens > 0
    assert len(cut.ids) == 12
    assert lm.tokenizer.decode(cut.ids).endswith("Answer:")


def test_the_context_is_what_was_trained_else_what_the_config_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')
    assert context_length(tmp_path, {"sequenceLength": 512}) == 512
    assert context_length(tmp_path) == 2048
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        context_length(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="cannot load"):
        load_model(tmp_path)
