from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from instructpt.errors import ConfigError
from instructpt.training import losses
from instructpt.training.attention import document_mask
from instructpt.training.batches import make_batch
from instructpt.training.model import PackedCausalLM, build_model, load_model
from instructpt.training.tokenshards import Row

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.fixture(scope="module")
def packed():
    made = build_model(CONFIG, seed=3, vocab_size=50, special=SPECIAL, length=32)
    return PackedCausalLM(made.eval())


def documents(seed, *sizes):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 50, size) for size in sizes]


def packed_row(texts):
    bounds = np.concatenate(([0], np.cumsum([len(t) for t in texts])))
    targets = np.ones(bounds[-1], dtype=bool)
    targets[bounds[:-1]] = False
    return Row(tokens=np.concatenate(texts), segments=bounds, targets=targets)


def tensors(batch):
    names = ("input_ids", "positions", "segments", "bounds", "predict_from", "labels")
    return {n: torch.from_numpy(getattr(batch, n)) for n in names}


def test_packed_documents_have_the_logits_they_have_alone(packed):
    texts = documents(1, 7, 1, 12, 5)
    rows = [packed_row(texts[:2]), packed_row(texts[2:])]
    args = tensors(make_batch(rows, 20, pad=2))
    with torch.no_grad():
        together = packed.logits(args["input_ids"], args["positions"], args["segments"], args["bounds"])
        for text, (row, at) in zip(texts, [(0, 0), (0, 7), (1, 0), (1, 12)], strict=True):
            alone = packed.model(torch.from_numpy(text)[None]).logits[0]
            assert torch.allclose(together[row, at : at + len(text)], alone, atol=1e-5, rtol=0)


def test_loss_is_the_sum_over_documents_alone(packed):
    texts = documents(2, 6, 9, 4)
    with torch.no_grad():
        found = packed(**tensors(make_batch([packed_row(texts)], 32, pad=2)))
        wanted = sum(
            torch.nn.functional.cross_entropy(
                packed.model(torch.from_numpy(t)[None]).logits[0, :-1], torch.from_numpy(t[1:]), reduction="sum"
            )
            for t in texts
        )
    assert float(found) == pytest.approx(float(wanted), abs=1e-4)


def test_many_targets_in_pieces_give_the_same_loss_and_gradients(packed, monkeypatch):
    args = tensors(make_batch([packed_row(documents(3, 15, 10))], 32, pad=2))

    def measured():
        packed.zero_grad()
        loss = packed(**args)
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in packed.parameters()]

    whole, grads = measured()
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", 50 * 4)
    pieces, again = measured()
    assert pieces == pytest.approx(whole, abs=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, again, strict=True))


def test_a_batch_without_targets_has_loss_zero_and_a_gradient_everywhere(packed):
    packed.zero_grad()
    loss = packed(**tensors(make_batch([], 8, pad=2)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in packed.parameters())


def test_mask_is_causal_inside_segments_and_nowhere_empty():
    mask = document_mask(torch.tensor([[0, 0, 1, -1, -1]]))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]
    ]  # fmt: skip


def test_seed_decides_the_weights():
    a, b, c = (build_model(CONFIG, seed=s, vocab_size=50, special=SPECIAL, length=32).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_vocabulary_and_special_tokens_are_the_tokenizers():
    config = build_model({**CONFIG, "vocab_size": 9}, seed=1, vocab_size=50, special=SPECIAL, length=32).config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (50, 0, 1, 2)


def test_rows_longer_than_the_positions_are_refused():
    with pytest.raises(ConfigError, match="has 64 positions"):
        build_model(CONFIG, seed=1, vocab_size=50, special=SPECIAL, length=65)


def test_an_unknown_model_type_is_refused():
    with pytest.raises(ConfigError, match="cannot make a model"):
        build_model({**CONFIG, "model_type": "no-such"}, seed=1, vocab_size=50, special=SPECIAL, length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    build_model(CONFIG, seed=3, vocab_size=50, special=SPECIAL, length=32).save_pretrained(path)
    return path


def damaged(folder, path, change):
    shutil.copytree(folder, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_base_model_is_loaded_whole(folder):
    model = load_model(folder, vocab_size=50, length=64)
    assert torch.equal(
        model.state_dict()["model.norm.weight"], load_file(folder / "model.safetensors")["model.norm.weight"]
    )


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(UP), f"lacks 1 of its tensors: {UP}"),
        (lambda t: [t.pop(n) for n in list(t) if ".1." in n], r"lacks 9 of its tensors: .* and 6 more"),
        (lambda t: t.update({UP: t[UP][:10].clone()}), "cannot be loaded"),
    ],
)
def test_a_base_model_that_is_not_whole_is_refused(folder, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_model(damaged(folder, tmp_path / "m", change), vocab_size=50, length=64)
    assert error.value.field == "init.from"


def test_a_base_model_of_half_a_file_or_few_positions_is_refused(folder, tmp_path):
    broken = damaged(folder, tmp_path / "m", lambda t: None)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(broken, vocab_size=50, length=64)
    with pytest.raises(ConfigError, match="the model has 64 positions"):
        load_model(folder, vocab_size=50, length=128)
