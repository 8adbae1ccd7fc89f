"""What all arms of the training benchmark share: a model, text, and the packed rows that our own preparation makes."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 4096
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
RATE, CLIP, ZERO_STAGE, SEED = 3e-4, 1.0, 1, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of one arm.

    Attributes:
        arm: Its name.
        folder: Of the fixture.
        output: Of the run, empty at its start.
        steps: Steps that are measured.
        warm_up: Steps before those.
        length: Tokens of a row.
        rows: Of a step, over all ranks.
        micro_rows: Of a forward pass.
        every: Steps between checkpoints, of arms that write some.
    """

    arm: str
    folder: str
    output: str
    steps: int
    warm_up: int
    length: int
    rows: int
    micro_rows: int
    every: int

    def to_json(self) -> str:
        """For the arm's process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps + self.warm_up


def texts(count: int, seed: int = 20261130) -> list[str]:
    """Sentences of made-up words with the frequencies of natural ones; 10 to 500 words, uniformly."""
    source = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(6000)]
    weights = [1.0 / rank for rank in range(1, len(words) + 1)]
    return [" ".join(source.choices(words, weights=weights, k=source.randint(10, 500))) for _ in range(count)]


def prepare(folder: Path, length: int, tokens: int) -> None:
    """A tokenizer and token shards of at least so many tokens, in ``tok`` and ``tokens`` below the folder."""
    from instructpt.api.runspec import PackRun, PreparedSource, ResolvedInput, TokenizerRun
    from instructpt.telemetry.context import WorkerContext
    from instructpt.training import prepare as preparation

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.jsonl"
    with text.open("w") as stream:
        for line in texts(max(200, tokens // 200)):
            stream.write(json.dumps({"text": line}) + "\n")
    source = PreparedSource(name="text", format="jsonl", uri=str(text))
    tokenizer = ResolvedInput(uri=str(folder / "tok"))
    for name, section in (
        ("tok", {"tokenizer": TokenizerRun(source=source, vocab_size=VOCABULARY)}),
        (
            "tokens",
            {"pack": PackRun(source=source, tokenizer=tokenizer, sequence_length=length, objective="Pretraining")},
        ),
    ):
        spec = run_spec(folder / name, "prepare", **section)
        ctx = WorkerContext(worker_id="bench", scratch=folder / "scratch")
        ctx.scratch.mkdir(exist_ok=True)
        preparation.run(spec, ctx)
        found = preparation.finalize(spec, ctx)
        assert found.missing == 0, found


def run_spec(output: Path, verb: Any, **section: Any) -> Any:
    """A RunSpec of the benchmark."""
    from instructpt.api.base import StorageSpec
    from instructpt.api.runspec import RunSpec

    return RunSpec(
        verb=verb,
        owner_kind="TrainingJob",
        owner_name="bench",
        step="s",
        output=StorageSpec(uri=str(output)),
        code_version="bench",
        **section,
    )


def train_spec(job: Job, ranks: int, **changes: Any) -> Any:
    """Our trainer's RunSpec for a job: as many steps as its tokens are worth, and some to spare.

    Args:
        job: The run.
        ranks: Processes.
        changes: Fields of the section ``train`` to be set differently.
    """
    from instructpt.api.runspec import InitRun, ResolvedInput, TrainRun, TrainSource
    from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule

    fields: dict[str, Any] = {
        "objective": "Pretraining",
        "init": InitRun(config=CONFIG),
        "tokenizer": ResolvedInput(uri=str(Path(job.folder) / "tok")),
        "sources": (TrainSource(name="text", weight=1.0, max_repeats=1000, uri=str(Path(job.folder) / "tokens")),),
        "tokens": (job.total + 2) * job.rows * job.length,
        "sequence_length": job.length,
        "global_batch_rows": job.rows,
        "micro_batch_rows": job.micro_rows,
        "optimizer": Optimizer(learning_rate=RATE),
        "schedule": Schedule(name="constant", warmup_fraction=0.0),
        "gradient_clip": CLIP,
        "precision": "fp32",
        "deepspeed": DeepSpeed(zero_stage=ZERO_STAGE),
        "processes_per_node": ranks,
        "checkpoint": CheckpointSpec(every_steps=job.every, keep=2),
        "seed": SEED,
    }
    return run_spec(Path(job.output), "train", train=TrainRun(**{**fields, **changes}))
