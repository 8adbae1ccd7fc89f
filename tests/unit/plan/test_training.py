from __future__ import annotations

from typing import Any

import pytest

from instructpt.api.runspec import StageResult
from instructpt.errors import ConfigError
from instructpt.plan import Plan, plan_resource
from tests.rendering import training

MIXTURE: list[dict[str, Any]] = [
    {"name": "augmented", "uri": "s3://lab/pairs", "format": "augmented"},
    {"name": "tuning", "uri": "s3://lab/tuning", "format": "instructions", "repeats": 4},
]


def packed(resource: Any, tokens: dict[str, int]) -> Plan:
    """The plan once every source is packed and gave so many tokens."""
    results: dict[str, StageResult] = {}
    while True:
        plan = plan_resource(resource, results, code_version="0.0.0")
        stage = plan.next_stage()
        if stage is None or stage.kind == "train":
            return plan
        assert stage.key is not None
        assert stage.output is not None
        counts = {"tokens": tokens[stage.step.removeprefix("train.pack-")]}
        results[stage.key] = StageResult(uri=stage.output.uri, digest=f"sha256:{len(results):064x}", counts=counts)


def test_repeats_and_caps_reach_the_trainer() -> None:
    resource = training(tokens="1M", mixture=[MIXTURE[0] | {"maxTokens": "900k"}, MIXTURE[1]])
    with pytest.raises(ConfigError, match="allow 940,000 tokens"):
        packed(resource, {"augmented": 10**6, "tuning": 10_000})
    plan = packed(resource, {"augmented": 10**6, "tuning": 25_000})
    section = plan.stage("train").runspec.train  # type: ignore[union-attr]
    assert [(s.repeats, s.max_tokens) for s in section.sources] == [(None, 900_000), (4, None)]  # type: ignore[union-attr]


def test_a_mixture_that_cannot_be_filled_is_refused_before_the_training() -> None:
    resource = training(tokens="1M", mixture=MIXTURE)
    with pytest.raises(ConfigError) as error:
        packed(resource, {"augmented": 100_000, "tuning": 10_000})
    text = str(error.value)
    assert error.value.field == "spec.tokens"
    assert "source 'augmented' is to give 960,000 tokens, but has 100,000 and may be read 4 times" in text
    assert "lower tokens to 440000" in text
    assert packed(training(tokens="440k", mixture=MIXTURE), {"augmented": 100_000, "tuning": 10_000})


def test_an_empty_source_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="source 'tuning' is empty"):
        packed(training(tokens="1M", mixture=MIXTURE), {"augmented": 10**6, "tuning": 0})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"mixture": [MIXTURE[1]]}, "every source has repeats"),
        ({"mixture": [MIXTURE[1] | {"weight": 2}]}, "weight or repeats, not both"),
        ({"sequenceLength": 4096}, "the model has 2048 positions"),
        ({"init": {"preset": "llama3-8b"}, "sequenceLength": 16384}, "the model has 8192 positions"),
        ({"init": {"from": "meta-llama/Meta-Llama-3-8B"}, "sequenceLength": 16384}, "the model has 8192 positions"),
        ({"init": {"preset": "llama3-8b", "config": {"hidden_size": 8}}}, "cannot be laid over preset llama3-8b"),
        ({"nodes": 3}, "globalBatchRows must be a multiple of the ranks"),
    ],
)
def test_what_cannot_work_is_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_resource(training(**spec), {}, code_version="0.0.0")


def test_the_continual_preset_is_the_published_model_with_its_own_tokenizer() -> None:
    by_preset = training(init={"preset": "llama3-8b"}, tokenizer=None, tokens="1M")
    by_name = training(init={"from": "meta-llama/Meta-Llama-3-8B"}, tokenizer=None, tokens="1M")
    plans = [packed(r, {"pairs": 10**6}) for r in (by_preset, by_name)]
    first, second = (p.stage("train").runspec for p in plans)
    assert first is not None
    assert first.train is not None
    assert first.train.init.config is None
    assert first.train.init.model is not None
    assert first.train.init.model.uri == first.train.tokenizer.uri == "meta-llama/Meta-Llama-3-8B"
    assert second is not None
    assert first.work_key() == second.work_key()


def test_held_out_text_is_packed_like_a_source_and_only_its_loss_is_taken() -> None:
    held = {"uri": "s3://lab/held", "format": "jsonl"}
    plan = packed(
        training(tokens="1M", validation={"source": held, "everySteps": 7, "tokens": "5k"}),
        {"pairs": 10**6, "validation": 900},
    )
    section = plan.stage("train").runspec.train  # type: ignore[union-attr]
    assert section is not None
    assert [s.name for s in section.sources] == ["pairs"]
    assert section.validation is not None
    assert (section.validation.every_steps, section.validation.tokens) == (7, 5000)
    assert section.validation.source.uri == plan.stage("train.pack-validation").output.uri  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="is the name of the text that is validated on"):
        plan_resource(
            training(mixture=[MIXTURE[0] | {"name": "validation"}], validation={"source": held}), {}, code_version="0"
        )


def test_epochs_take_the_place_of_tokens() -> None:
    resource = training(tokens=None, epochs=3, mixture=[MIXTURE[0], MIXTURE[1]])
    section = packed(resource, {"augmented": 10, "tuning": 10}).stage("train").runspec.train  # type: ignore[union-attr]
    assert section is not None
    assert (section.tokens, section.epochs) == (None, 3)


def test_what_is_as_before_leaves_no_trace_in_the_runspec() -> None:
    section = packed(training(), {"pairs": 10**9}).stage("train").runspec.train  # type: ignore[union-attr]
    assert section is not None
    assert not {"kernels", "validation", "epochs"} & section.to_wire().keys()
    faster = packed(training(kernels={"attention": "mask"}), {"pairs": 10**9}).stage("train").runspec
    assert faster is not None
    assert faster.to_wire()["train"]["kernels"]["attention"] == "mask"
