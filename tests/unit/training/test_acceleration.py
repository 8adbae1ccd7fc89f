"""Fused kernels and compilation: refused with a reason, or put in without a change of names and values."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from instructpt.api.v1alpha1.trainingjob import Kernels
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.training import acceleration
from instructpt.training.model import build_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip


def model():
    return build_model(CONFIG, seed=1, vocab_size=30, special={}, length=16)


def test_nothing_wanted_is_always_fine():
    acceleration.check(Kernels(), CPU, 3)
    acceleration.accelerate(torch.nn.Identity(), Kernels())


def test_liger_needs_a_gpu_and_its_package(monkeypatch):
    with pytest.raises(ConfigError, match=r"kernels\.liger=True: liger-kernel needs a GPU"):
        acceleration.check(Kernels(liger=True), CPU, 1)
    monkeypatch.setattr(acceleration.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentNotReadyError, match="pip install liger-kernel"):
        acceleration.check(Kernels(liger=True), GPU, 1)


def test_compiling_needs_a_compiler_on_the_cpu_and_no_stage_3(monkeypatch):
    with pytest.raises(ConfigError, match="stage 3"):
        acceleration.check(Kernels(compile=True), GPU, 3)
    acceleration.check(Kernels(compile=True), GPU, 2)
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentNotReadyError, match="needs a C\\+\\+ compiler"):
        acceleration.check(Kernels(compile=True), CPU, 1)


def test_liger_is_given_the_model_and_told_to_leave_the_loss(monkeypatch):
    seen = {}
    fake = types.ModuleType("liger_kernel.transformers.monkey_patch")
    fake.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    fake._apply_liger_kernel_to_instance = lambda **named: seen.update(named)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    made = model()
    acceleration.accelerate(made, Kernels(liger=True))
    assert seen == {"model": made, "cross_entropy": False, "fused_linear_cross_entropy": False}
    fake.MODEL_TYPE_TO_APPLY_LIGER_FN = {}
    with pytest.raises(ConfigError, match="does not know the architecture llama"):
        acceleration.accelerate(made, Kernels(liger=True))


def test_compiled_layers_keep_names_and_values():
    plain, compiled = model(), model()
    acceleration.accelerate(compiled, Kernels(compile=True), backend="eager")
    ids = torch.tensor([[1, 2, 3, 4]])
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, compiled(ids).logits, atol=1e-6)
    with pytest.raises(ConfigError, match="no list of layers"):
        acceleration.accelerate(types.SimpleNamespace(get_decoder=lambda: object()), Kernels(compile=True))
