"""Engine ``transformers`` on real tiny models: the fast decoder against the model, determinism, failures."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel  # noqa: E402

from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling  # noqa: E402
from instructpt.errors import ConfigError, SynthesisError  # noqa: E402
from instructpt.synthesis import llama_decoder  # noqa: E402
from instructpt.synthesis.engine import Completion, GenerationRequest, ScoreRequest, open_engine  # noqa: E402
from instructpt.synthesis.llama_decoder import LlamaDecoder  # noqa: E402
from instructpt.synthesis.transformers_engine import ModelDecoder, TransformersEngine  # noqa: E402

WINDOW = 128


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Wide initial weights, so that the choices are not ties.
    return support.make_model(tmp_path_factory.mktemp("random"), initializer_range=0.3)


def start(folder: Path, **engine: Any) -> TransformersEngine:
    spec = Engine(name="transformers", **engine)
    found = open_engine("transformers", folder, spec, Sampling(context_window=WINDOW, max_tokens=30))
    assert isinstance(found, TransformersEngine)
    return found


def requests(count: int, *, seed: int = 1, **fields: Any) -> list[GenerationRequest]:
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(2, 400) for _ in range(rng.randrange(1, 60))) for _ in range(count)]
    return [
        GenerationRequest(prompt_ids=ids, **{"max_tokens": rng.randrange(1, 40), "seed": i, **fields})
        for i, ids in enumerate(prompts)
    ]


def ask(folder: Path, asked: list[GenerationRequest], **engine: Any) -> list[Completion]:
    async def main() -> list[Completion]:
        async with start(folder, **engine) as found:
            return list(await asyncio.gather(*map(found.generate, asked)))

    return asyncio.run(main())


@torch.inference_mode()
def by_generate(folder: Path, request: GenerationRequest) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stops = list(request.stop_ids) or None
    ids = torch.tensor([request.prompt_ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=0,
    )
    return list(out[0, len(request.prompt_ids) :].tolist())


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_greedy_completions_are_those_of_generate(random_model: Path, concurrency: int) -> None:
    asked = requests(12, stop_ids=tuple(range(2, 30)))
    found = ask(random_model, asked, concurrency=concurrency)
    assert [list(c.token_ids) for c in found] == [by_generate(random_model, r) for r in asked]
    for request, completion in zip(asked, found, strict=True):
        stopped = completion.token_ids[-1] in request.stop_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert len(completion.token_ids) <= request.max_tokens
    assert {c.finish_reason for c in found} == {"stop", "length"}


def test_sampling_is_a_function_of_the_seed(random_model: Path) -> None:
    asked = requests(6, temperature=1.0, top_p=0.9)
    assert ask(random_model, asked) == ask(random_model, asked)
    other = [
        GenerationRequest(prompt_ids=r.prompt_ids, max_tokens=39, temperature=1.0, seed=r.seed + 99) for r in asked
    ]
    assert [c.token_ids[:5] for c in ask(random_model, asked)] != [c.token_ids[:5] for c in ask(random_model, other)]


def test_a_nucleus_of_nothing_is_greedy(random_model: Path) -> None:
    greedy, nucleus = requests(5), requests(5, temperature=1.0, top_p=1e-6)
    found = [c.token_ids for c in ask(random_model, nucleus)]
    assert found == [c.token_ids for c in ask(random_model, greedy)]


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 8},
        {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    ],
)
def test_the_fast_decoder_agrees_with_the_model(tmp_path: Path, shape: dict[str, Any]) -> None:
    support.make_model(tmp_path, tokenizer=False, initializer_range=0.3, **shape)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert llama_decoder.supports(model)
    decoder = LlamaDecoder(model, lanes=3, length=500)
    assert llama_decoder.agrees(decoder, model)
    # Beyond the first allocation, and with lanes of different lengths.
    rng = random.Random(0)
    lanes = [[rng.randrange(400) for _ in range(n)] for n in (300, 5, 120)]
    with torch.inference_mode():
        for ids in lanes:
            decoder.admit(ids)
        for _ in range(4):
            tokens = [rng.randrange(400) for _ in lanes]
            got = decoder.step(tokens)
            lanes = [[*ids, token] for ids, token in zip(lanes, tokens, strict=True)]
            wanted = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in lanes])
            assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-3)
        decoder.drop(0)
        lanes = [lanes[2], lanes[1]]
        got = decoder.step([7, 8])
        wanted = torch.stack(
            [model(torch.tensor([[*ids, t]])).logits[0, -1] for ids, t in zip(lanes, (7, 8), strict=True)]
        )
        assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("fast", [True, False])
def test_the_score_of_a_text_is_the_models_own(random_model: Path, fast: bool) -> None:
    engine = start(random_model)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()
    if fast:
        assert isinstance(engine._decoder, LlamaDecoder)
    else:
        engine._decoder = ModelDecoder(model)
    for request in requests(4):
        ids, first = request.prompt_ids + (7, 8, 9), len(request.prompt_ids)
        asked = ScoreRequest(prompt_ids=request.prompt_ids, continuation_ids=ids[first:])
        with torch.inference_mode():
            shares = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        wanted = [float(shares[at - 1, ids[at]]) for at in range(first, len(ids))]
        assert asyncio.run(engine.score(asked)) == pytest.approx(wanted, abs=1e-3)


def test_a_decoder_that_disagrees_is_noticed(tmp_path: Path) -> None:
    support.make_model(tmp_path, tokenizer=False, initializer_range=0.3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    decoder = LlamaDecoder(model, lanes=1, length=64)
    decoder._eps = 0.5
    assert not llama_decoder.agrees(decoder, model)


def test_other_architectures_are_served_by_their_own_forward(tmp_path: Path) -> None:
    support.make_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=WINDOW, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    engine = start(tmp_path)
    assert isinstance(engine._decoder, ModelDecoder)
    asked = requests(5)
    assert [list(c.token_ids) for c in ask(tmp_path, asked)] == [by_generate(tmp_path, r) for r in asked]


def test_bad_requests_fail_alone(random_model: Path) -> None:
    async def main() -> list[Completion | BaseException]:
        async with start(random_model) as engine:
            asked = [*requests(2), GenerationRequest(prompt_ids=(), max_tokens=3)]
            asked += [GenerationRequest(prompt_ids=(5,) * WINDOW, max_tokens=1)]
            asked += [GenerationRequest(prompt_ids=(10_000,), max_tokens=3)]
            return list(await asyncio.gather(*map(engine.generate, asked), return_exceptions=True))

    found = asyncio.run(main())
    assert [isinstance(x, Completion) for x in found] == [True, True, False, False, False]
    assert all(isinstance(x, SynthesisError) for x in found[2:])


def test_cancelled_requests_leave_the_others_and_the_engine_as_they_were(random_model: Path) -> None:
    async def main() -> tuple[list[Completion], list[Completion]]:
        async with start(random_model, concurrency=4) as engine:
            lost = [asyncio.ensure_future(engine.generate(r)) for r in requests(6, max_tokens=60)]
            for _ in range(12):
                await asyncio.sleep(0)
            for task in lost:
                task.cancel()
            await asyncio.gather(*lost, return_exceptions=True)
            first = await asyncio.gather(*map(engine.generate, requests(5, seed=2)))
            again = await asyncio.gather(*map(engine.generate, requests(5, seed=2)))
            return list(first), list(again)

    first, again = asyncio.run(main())
    assert first == again == ask(random_model, requests(5, seed=2), concurrency=4)


def test_closing_with_requests_under_way_cancels_them(random_model: Path) -> None:
    async def main() -> None:
        engine = start(random_model)
        task = asyncio.ensure_future(engine.generate(requests(1, max_tokens=60)[0]))
        for _ in range(12):
            await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.close()

    asyncio.run(main())


def test_a_model_of_no_numbers_fails_its_requests(tmp_path: Path) -> None:
    support.make_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(SynthesisError, match="no finite logits"):
        ask(tmp_path, requests(1))
    with pytest.raises(SynthesisError, match="no finite probability"):
        asyncio.run(start(tmp_path).score(ScoreRequest(prompt_ids=(5,), continuation_ids=(6,))))


def test_a_window_beyond_the_model_is_refused(random_model: Path) -> None:
    sampling = Sampling(context_window=4096, max_tokens=30)
    with pytest.raises(ConfigError, match=r"sampling\.contextWindow=4096: the model has 512 positions"):
        open_engine("transformers", random_model, Engine(name="transformers"), sampling)


def test_broken_weights_are_a_matter_of_configuration(tmp_path: Path, random_model: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(random_model, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        start(broken)
