from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.accelerators import ACCELERATORS, accelerator, from_product
from instructpt.api.presets import PRESETS, num_parameters
from instructpt.errors import ConfigError
from instructpt.plan.estimate import Machine, estimate
from instructpt.plan.fit import CHUNK_LOGITS, Fit, Layout, Shape, fit, flops_per_token
from instructpt.training import losses, metrics
from tests.rendering import training

MACHINE = Machine(cores=2, memory_bytes=24 << 30)


def shape(preset: str, vocabulary: int = 32_000) -> Shape:
    config = PRESETS[preset]
    return Shape.of(config, num_parameters(config, vocabulary), vocabulary)


def layout(**changes: Any) -> Layout:
    base = Layout(zero_stage=1, ranks=8, tokens=4096, micro_batches=4, precision="bf16", device="gpu")
    return replace(base, **changes)


def test_states_are_those_of_the_zero_paper_and_what_deepspeed_holds_beside_them() -> None:
    p = 10**9
    big = Shape(
        parameters=p, vocabulary=32_000, hidden=2048, intermediate=8192, layers=20, query_width=2048, key_width=512
    )
    bucket = 2 * 500_000_000
    one, two, three = (fit(big, layout(zero_stage=stage)) for stage in (1, 2, 3))
    assert (one.weights, two.weights, three.weights) == (2 * p, 2 * p, 2 * p // 8 + 2 * p)
    assert one.optimizer == two.optimizer == three.optimizer == 12 * p // 8
    assert one.gradients == 2 * p + 4 * p // 8
    assert two.gradients == three.gradients == 2 * p // 8 + 4 * p // 8
    assert (one.buffers, two.buffers, three.buffers) == (bucket, bucket, 2 * bucket)
    assert fit(big, layout(adafactor=True)).optimizer < one.optimizer


@given(stage=st.integers(1, 2), ranks=st.sampled_from([1, 2, 8, 64]), tokens=st.integers(64, 65_536))
def test_more_ranks_and_smaller_micro_batches_need_no_more(stage: int, ranks: int, tokens: int) -> None:
    here = fit(shape("350m"), layout(zero_stage=stage, ranks=ranks, tokens=tokens))
    assert fit(shape("350m"), layout(zero_stage=stage, ranks=2 * ranks, tokens=tokens)).total <= here.total
    assert fit(shape("350m"), layout(zero_stage=stage, ranks=ranks, tokens=tokens // 2)).total < here.total
    assert here.total == sum(v for k, v in here.to_dict().items() if k != "total")


def test_constants_are_those_of_the_trainer() -> None:
    assert {"cpu": CHUNK_LOGITS["cpu"], "cuda": CHUNK_LOGITS["gpu"]} == losses.CHUNK_LOGITS
    of_trainer = metrics.flops_per_token(shape("350m").parameters, 24, 1024, 2048)
    assert flops_per_token(shape("350m"), 2048) == of_trainer
    for name, device in (("a100-80gb", "NVIDIA A100-SXM4-80GB"), ("h200", "NVIDIA H200")):
        assert accelerator(name).flops == metrics.peak_flops(device, 1)


def test_gpus_are_known_by_name_and_by_the_label_of_nodes() -> None:
    assert from_product("NVIDIA-A100-SXM4-80GB") == accelerator("A100-80gb")
    assert from_product("NVIDIA-H100-80GB-HBM3") == accelerator("h100-80gb")
    assert from_product("Tesla-K80") is None
    assert len({a.name for a in ACCELERATORS}) == len(ACCELERATORS)
    with pytest.raises(ConfigError, match="use one of b200"):
        accelerator("h1000")


def job(**spec: Any) -> Any:
    return estimate(training(nodes=1, gpusPerNode=8, **spec), None, MACHINE)[0]


def test_a_training_on_gpus_is_compared_with_their_memory_and_not_with_this_machines() -> None:
    row = job()
    assert (row.gpu, row.devices, row.room_bytes) == ("a100-80gb", 8, 80 * 10**9)
    assert isinstance(row.fit, Fit)
    assert row.memory_bytes == row.fit.total
    assert row.fits(MACHINE) is True
    selected = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}
    small = job(podTemplate=selected, sequenceLength=2048, microBatchRows=16)
    assert (small.gpu, small.fits(MACHINE)) == ("l4", False)
    assert small.advice == "microBatchRows 2"


def test_advice_is_the_mildest_change_that_fits() -> None:
    big = {"init": {"preset": "llama3-8b"}, "tokenizer": None, "sequenceLength": 4096, "microBatchRows": 1}
    row = job(**big, deepspeed={"zeroStage": 1})
    assert row.fits(MACHINE) is False
    assert row.advice == "deepspeed.zeroStage 2"
    one = estimate(training(**big, nodes=1, gpusPerNode=1), None, MACHINE)[0]
    assert one.advice is not None
    assert "more GPUs" in one.advice


def test_time_follows_from_tokens_and_the_stated_mfu() -> None:
    slow, fast = (estimate(training(nodes=1, gpusPerNode=8), None, replace(MACHINE, mfu=mfu))[0] for mfu in (0.2, 0.4))
    assert slow.seconds is not None
    assert fast.seconds is not None
    assert (slow.seconds - 60) == pytest.approx(2 * (fast.seconds - 60))
    assert fast.gpu_hours == pytest.approx(8 * fast.seconds / 3600)
    needed = 10**9 * flops_per_token(shape("1.3b"), 2048)
    assert fast.seconds - 60 == pytest.approx(needed / (8 * 312e12 * 0.4))
