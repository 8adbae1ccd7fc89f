from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from instructpt.api.presets import PRESETS, num_parameters
from instructpt.plan.estimate import FILL, Machine, Probe, estimate
from tests.unit.plan.test_pipeline import quickstart

MACHINE = Machine(cores=2, memory_bytes=8 << 30)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_counted_as_transformers_counts_them(preset: str) -> None:
    config = dict(PRESETS[preset])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, "vocab_size": 4096}))
    assert num_parameters(config, 4096) == sum(p.numel() for p in model.parameters())


def test_the_quickstart_is_estimated_stage_by_stage() -> None:
    rows = {r.step: r for r in estimate(quickstart(), Probe(documents=4000, bytes=2_000_000, sampled=4000), MACHINE)}
    assert rows["corpus"].shards == 16
    assert rows["tuning-tasks"].documents == 2000
    training = quickstart().spec.training
    steps = math.ceil(training.tokens / (training.global_batch_rows * training.sequence_length * FILL))
    assert rows["train-instruct"].steps == rows["train-vanilla"].steps == steps
    assert all(r.fits(MACHINE) is not False for r in rows.values())


def test_without_a_probe_training_is_estimated_still() -> None:
    rows = {r.step: r for r in estimate(quickstart(), None, MACHINE)}
    assert rows["corpus"].documents is None
    assert rows["train-instruct"].steps is not None


def test_a_large_model_does_not_fit_a_laptop() -> None:
    resource = quickstart(
        training={"init": {"preset": "1.3b"}, "tokenizer": {"train": {"vocabSize": 32000}}, "tokens": "1B"}
    )
    rows = {r.step: r for r in estimate(resource, None, MACHINE)}
    assert rows["train-instruct"].fits(MACHINE) is False
