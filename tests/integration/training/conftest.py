"""A tiny run, made once: text, a tokenizer, token shards; and the RunSpecs that train on them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import (
    InitRun,
    PackRun,
    PreparedSource,
    ResolvedInput,
    RunSpec,
    TokenizerRun,
    TrainRun,
    TrainSource,
)
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule
from instructpt.telemetry.context import WorkerContext
from instructpt.training import prepare

WORDS = ["the", "model", "reads", "a", "text", "and", "writes", "pairs", "of", "questions", "answers", "tokens", "row"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + "." for _ in range(count)]


def runspec(output: Path | str, *, verb: str = "prepare", **section: Any) -> RunSpec:
    return RunSpec(
        verb=verb,
        owner_kind="TrainingJob",
        owner_name="t",
        step="s",
        output=StorageSpec(uri=str(output)),
        code_version="test",
        **section,
    )


def context(folder: Path, **fields: Any) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id="w", scratch=folder, **fields)


def prepared(spec: RunSpec, scratch: Path):
    prepare.run(spec, context(scratch))
    result = prepare.finalize(spec, context(scratch))
    assert result.missing == 0
    return result


@dataclass(frozen=True)
class Prepared:
    text: Path
    source: PreparedSource
    tokenizer: ResolvedInput
    tokens: ResolvedInput
    pack: Any


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Prepared:
    root = tmp_path_factory.mktemp("tiny")
    text = root / "text"
    text.mkdir()
    for part in range(2):
        lines = (json.dumps({"text": t}) + "\n" for t in sentences(part, 150))
        (text / f"{part}.jsonl").write_text("".join(lines))
    source = PreparedSource(name="text", format="jsonl", uri=str(text))
    made = prepared(runspec(root / "tok", tokenizer=TokenizerRun(source=source, vocab_size=300)), root / "s1")
    tokenizer = ResolvedInput(uri=made.uri, digest=made.digest)
    pack = PackRun(source=source, tokenizer=tokenizer, sequence_length=64, objective="Pretraining")
    packed = prepared(runspec(root / "tokens", pack=pack), root / "s2")
    return Prepared(
        text=text,
        source=source,
        tokenizer=tokenizer,
        tokens=ResolvedInput(uri=packed.uri, digest=packed.digest),
        pack=packed,
    )


@pytest.fixture(scope="session")
def train_spec(tiny):
    def make(output: Path, **changes: Any) -> RunSpec:
        fields: dict[str, Any] = {
            "objective": "Pretraining",
            "init": InitRun(config=CONFIG),
            "tokenizer": tiny.tokenizer,
            "sources": (
                TrainSource(name="text", weight=1.0, max_repeats=4, uri=tiny.tokens.uri, digest=tiny.tokens.digest),
            ),
            "tokens": 5000,
            "sequence_length": 64,
            "global_batch_rows": 8,
            "micro_batch_rows": 4,
            "optimizer": Optimizer(learning_rate=3e-3),
            "schedule": Schedule(),
            "gradient_clip": 1.0,
            "precision": "auto",
            "deepspeed": DeepSpeed(),
            "checkpoint": CheckpointSpec(every_steps=4, keep=2),
            "seed": 1,
        }
        return runspec(output, verb="train", train=TrainRun(**{**fields, **changes}))

    return make
