"""``zero_ranks.py FOLDER``: two ranks under torchrun train a small model in many ways; rank 0 prints losses as JSON.

``documents`` is the oracle: one process, no DeepSpeed, no packing, every document by itself, torch's own optimizers.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instructpt.api.v1alpha1.trainingjob import Optimizer
from instructpt.training.batches import micro_batches
from instructpt.training.engine import Engine, EngineSettings, Ranks, start
from instructpt.training.loop import to_tensors
from instructpt.training.model import PackedCausalLM, build_model
from instructpt.training.parts import PARAM, Parts, write_part
from instructpt.training.tokenshards import Row

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
LENGTH, ROWS, STEPS, VOCABULARY, CLIP = 48, 7, 4, 61, 0.5
RATES = {"adamw": 3e-3, "adafactor": 2e-2}


def step_rows(step: int) -> list[list[np.ndarray]]:
    """Documents by row; seven rows, so that one rank has fewer."""
    draw = np.random.default_rng(step)
    return [[draw.integers(3, VOCABULARY, n) for n in draw.choice([5, 9, 14, 1], 3)] for _ in range(ROWS)]


def packed(documents: list[np.ndarray]) -> Row:
    bounds = np.concatenate(([0], np.cumsum([len(d) for d in documents])))
    targets = np.ones(bounds[-1], dtype=bool)
    targets[bounds[:-1]] = False
    return Row(tokens=np.concatenate(documents), segments=bounds, targets=targets)


def model() -> torch.nn.Module:
    return build_model(CONFIG, seed=3, vocab_size=VOCABULARY, special={}, length=LENGTH)


def targets_of(step: int) -> int:
    return sum(len(d) - 1 for row in step_rows(step) for d in row)


def documents(name: str) -> tuple[list[float], list[float]]:
    net = model()
    params = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    if name == "adamw":
        optimizer: Any = torch.optim.AdamW(groups, lr=RATES[name], betas=(0.9, 0.95), eps=1e-8)
    else:
        optimizer = torch.optim.Adafactor(groups, lr=RATES[name], eps=(1.19e-7, 1e-3))
    found, norms = [], []
    for step in range(STEPS):
        total = 0.0
        for document in (d for row in step_rows(step) for d in row if len(d) > 1):
            ids = torch.from_numpy(document)
            logits = net(ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum") / targets_of(step)
            loss.backward()
            total += float(loss.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        found.append(total)
    return found, norms


def engine_of(ranks: Ranks, stage: int, precision: Any, name: Any, module: PackedCausalLM | None = None) -> Engine:
    settings = EngineSettings(
        zero_stage=stage, precision=precision, gradient_clip=CLIP, micro_batches=2, micro_batch_rows=2,
        optimizer=Optimizer(name=name, learning_rate=RATES[name]),
    )  # fmt: skip
    return Engine(module or PackedCausalLM(model()), settings, ranks)


def trained(ranks: Ranks, engine: Engine, name: str, first: int, end: int) -> list[float]:
    return [loss for loss, _ in watched(ranks, engine, name, first, end)]


def watched(ranks: Ranks, engine: Engine, name: str, first: int, end: int) -> Iterator[tuple[float, float]]:
    """Loss of each step, and the norm of its gradients before they are clipped."""
    for step in range(first, end):
        rows = [packed(row) for row in step_rows(step)][ranks.rank :: ranks.world_size]
        total = torch.zeros(1, dtype=torch.float64)
        for batch in micro_batches(rows, 2, 2, LENGTH, 0):
            total += engine.accumulate(to_tensors(batch, engine.device), targets_of(step))
        norm = engine.step(RATES[name])
        yield float(engine.all_sum(total)) / targets_of(step), norm


def clipped(ranks: Ranks, stage: int) -> list[float]:
    """Of the first step: the norm before clipping, and after it as AdamW's first moment holds it."""
    engine = engine_of(ranks, stage, "fp32", "adamw")
    ((_, norm),) = watched(ranks, engine, "adamw", 0, 1)
    squares = [flat.tensors["exp_avg"].double().square().sum() for flat in engine.flats()]
    total = engine.all_sum(torch.stack(squares).sum().reshape(1) if squares else torch.zeros(1, dtype=torch.float64))
    return [norm, float(total) ** 0.5 / 0.1]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    start(torch.device("cpu"), ranks)
    found: dict[str, Any] = {}
    for name in RATES:
        found[f"documents-{name}"], found[f"norms-{name}"] = documents(name)
    for stage in range(4):
        found[f"clipped-{stage}"] = clipped(ranks, stage)
    for stage, precision, name in [
        (0, "fp32", "adamw"), (1, "fp32", "adamw"), (2, "fp32", "adamw"), (3, "fp32", "adamw"),
        (0, "fp32", "adafactor"), (1, "fp32", "adafactor"), (2, "fp32", "adafactor"), (3, "fp32", "adafactor"),
        (1, "bf16", "adamw"), (2, "bf16", "adamw"), (3, "bf16", "adamw"), (1, "bf16", "adafactor"),
    ]:  # fmt: skip
        engine = engine_of(ranks, stage, precision, name)
        found[f"{stage}-{precision}-{name}"] = trained(ranks, engine, name, 0, STEPS)
    # Adafactor's state goes from one stage to another, through the files of a checkpoint.
    before = engine_of(ranks, 2, "fp32", "adafactor")
    begun = trained(ranks, before, "adafactor", 0, 2)
    folder = Path(sys.argv[1])
    write_part(folder / f"{ranks.rank}.safetensors", before.flats(), {})
    before.gather(0)
    parts = Parts([folder / f"{rank}.safetensors" for rank in range(ranks.world_size)])
    module = PackedCausalLM(model())
    module.load_state_dict({name: parts.whole(PARAM, name) for name in parts.names}, strict=False)
    after = engine_of(ranks, 3, "fp32", "adafactor", module)
    after.load(parts, steps=2)
    found["moved-adafactor"] = begun + trained(ranks, after, "adafactor", 2, STEPS)
    if ranks.rank == 0:
        print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
    import os

    os._exit(0)
