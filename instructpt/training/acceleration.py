"""Optional ways to compute the same faster: fused kernels of liger-kernel, and torch.compile."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from typing import Any, cast

import torch
from torch import nn

from instructpt.api.v1alpha1.trainingjob import Kernels
from instructpt.errors import ConfigError, EnvironmentNotReadyError

_FIELD = "kernels"


def check(kernels: Kernels, device: torch.device, zero_stage: int) -> None:
    """Refuse what is asked for and impossible here, before anything is loaded.

    Raises:
        ConfigError: Device or ZeRO stage do not allow it.
        EnvironmentNotReadyError: A package or a compiler is missing.
    """
    if kernels.liger:
        if device.type != "cuda":
            raise ConfigError(
                "liger-kernel needs a GPU, this run is on the CPU",
                field=f"{_FIELD}.liger",
                value=True,
                fix="leave it out, or train on GPUs",
            )
        if importlib.util.find_spec("liger_kernel") is None:
            raise EnvironmentNotReadyError(
                "the package liger-kernel is not installed", field=f"{_FIELD}.liger", fix="pip install liger-kernel"
            )
    if kernels.compile:
        if zero_stage == 3:
            raise ConfigError(
                "does not go together with ZeRO stage 3, which fetches weights while layers run",
                field=f"{_FIELD}.compile",
                value=True,
                fix="use zeroStage 2 or less, or leave it out",
            )
        if device.type == "cpu" and not _compiler():
            raise EnvironmentNotReadyError(
                "torch.compile needs a C++ compiler, and none is on the PATH",
                field=f"{_FIELD}.compile",
                fix="install g++, or leave it out",
            )


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


def accelerate(model: nn.Module, kernels: Kernels, *, backend: str = "inductor") -> None:
    """Put in fused kernels, and have each layer compiled at its first call; names and values of parameters stay.

    Attention stays out of the compiled part: its segments differ from batch to batch.

    Args:
        model: A causal language model of transformers.
        kernels: What is wanted; see :func:`check`.
        backend: Of torch.compile.

    Raises:
        ConfigError: The architecture is unknown to liger-kernel, or has no layers to compile.
    """
    if kernels.liger:
        _fuse(model)
    if kernels.compile:
        layers = getattr(cast("Any", model).get_decoder(), "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise ConfigError(
                "the architecture has no list of layers", field=f"{_FIELD}.compile", value=True, fix="leave it out"
            )
        for layer in layers:
            layer.compile(backend=backend, dynamic=False)


def _fuse(model: nn.Module) -> None:
    liger: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
    kind = str(cast("Any", model).config.model_type)
    if kind not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"liger-kernel does not know the architecture {kind}", field=f"{_FIELD}.liger", value=True,
            fix="leave it out",
        )  # fmt: skip
    # The loss is our own, in pieces; norms, rotary embeddings and gated units are theirs.
    liger._apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
