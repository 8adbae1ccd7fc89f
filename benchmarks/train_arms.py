"""One rank of one arm of the training benchmark, under torchrun: ``train_arms.py JOB``; rank 0 prints one line of JSON.

The clock runs from the end of the warm-up to the end of the last measured step, whatever happens in between.

- *ours*: the trainer as it is, on token shards, with masks, metrics and asynchronous checkpoints.
- *bare*: DeepSpeed alone, on batches in memory with the shapes and bounds of ours and random tokens; the same model,
  kernels and optimizer. Nothing of our loop is in it.
- *padded* and *concatenated*: the bare loop on other batches: a document a row, filled up; rows cut out of one stream.
- *plain*: the bare loop on the model of transformers as it comes, its own attention and loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_clock import Clock
from train_fixture import CLIP, CONFIG, RATE, SEED, VOCABULARY, ZERO_STAGE, Job, train_spec

Batch = dict[str, torch.Tensor]


class Enough(Exception):  # noqa: N818  # the measured steps are over
    """Ends a run of ours, which has no reason to go on."""


def ours(job: Job, ranks: Any, clock: Clock) -> dict[str, Any]:
    """The trainer."""
    from instructpt.storage import open_store
    from instructpt.telemetry.progress import Progress
    from instructpt.training.loop import Surroundings, train
    from instructpt.training.workspace import prepare_workspace

    spec = train_spec(job, ranks.world_size)
    scratch = Path(job.output) / f"scratch-{ranks.rank}"
    workspace = prepare_workspace(spec, open_store(spec.output.uri), scratch)
    losses: list[float] = []

    class Watched(Progress):
        def update(self, **figures: Any) -> None:
            super().update(**figures)
            if "loss" in (figures.get("gauges") or {}):
                losses.append(figures["gauges"]["loss"])

    def stop() -> bool:
        # Asked for once a step, before its update: the end of a step shows at the next one.
        if calls and clock.tick():
            raise Enough
        calls.append(None)
        return False

    calls: list[None] = []
    with contextlib.suppress(Enough):
        train(spec, workspace, Surroundings(ranks=ranks, stop=stop, progress=Watched()))
    return {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}


def step_rows(job: Job, ranks: Any) -> list[list[Any]]:
    """The packed rows of this rank in every step, as the trainer takes them."""
    from instructpt.training.dataset import TokenSource, fetch_tokens
    from instructpt.training.files import tokenizer_folder
    from instructpt.training.mixture import Mixture

    section = train_spec(job, ranks.world_size).train
    content = tokenizer_folder(section.tokenizer, Path(job.output) / "models").content
    fetched = fetch_tokens(section.sources[0], Path(job.output), sequence_length=job.length, tokenizer=content)
    source = TokenSource(section.sources[0], fetched)
    mixture = Mixture([source.rows()], tokens=section.tokens, batch_rows=job.rows, seed=SEED)
    slots = [mixture.step(step)[ranks.rank :: ranks.world_size] for step in range(job.total)]
    return [[source.row(slot.row).head(slot.tokens) for slot in mine] for mine in slots]


def packed(job: Job, ranks: Any) -> list[list[Any]]:
    """Rows as our preparation packs them."""
    return step_rows(job, ranks)


def padded(job: Job, ranks: Any) -> list[list[Any]]:
    """One document a row; half a row long on average, uniformly."""
    draw = np.random.default_rng(ranks.rank)
    sizes = draw.integers(8, job.length - 7, (job.total, job.rows // ranks.world_size))
    return [[row_of(np.array([0, int(size)])) for size in line] for line in sizes]


def concatenated(job: Job, ranks: Any) -> list[list[Any]]:
    """Rows cut out of one stream: full, and attention over all of it."""
    return [[row_of(np.array([0, job.length]))] * (job.rows // ranks.world_size) for _ in range(job.total)]


def row_of(segments: Any) -> Any:
    """A row with these bounds, whose tokens come later."""
    from instructpt.training.tokenshards import Row

    size = int(segments[-1])
    targets = np.ones(size, dtype=bool)
    targets[segments[:-1]] = False
    return Row(tokens=np.zeros(size, dtype=np.uint16), segments=segments, targets=targets)


ROWS: dict[str, Callable[[Job, Any], list[list[Any]]]] = {
    "bare": packed,
    "plain": packed,
    "padded": padded,
    "concatenated": concatenated,
}


def batches(job: Job, ranks: Any, rows: list[list[Any]]) -> list[list[Batch]]:
    """The micro batches of every step in memory, with random tokens."""
    from instructpt.training.batches import micro_batches
    from instructpt.training.loop import to_tensors

    count = -(-job.rows // ranks.world_size // job.micro_rows)
    out = []
    for number, mine in enumerate(rows):
        draw = torch.Generator().manual_seed(number * ranks.world_size + ranks.rank)
        made = []
        for batch in micro_batches(mine, job.micro_rows, count, job.length, 0):
            tensors = dict(to_tensors(batch, torch.device("cpu")))
            tensors["input_ids"] = torch.randint(0, VOCABULARY, tensors["input_ids"].shape, generator=draw)
            tensors["labels"] = tensors["input_ids"].reshape(-1)[tensors["predict_from"] + 1]
            made.append(tensors)
        out.append(made)
    return out


class Plain(torch.nn.Module):
    """The model of transformers as it comes: full causal attention, its own loss; documents see each other."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over the batch."""
        out: torch.Tensor = self.model(input_ids=input_ids, labels=labels, use_cache=False).loss
        return out


def bare(job: Job, ranks: Any, clock: Clock) -> dict[str, Any]:
    """DeepSpeed and nothing else."""
    import deepspeed

    from instructpt.training.engine import start
    from instructpt.training.model import PackedCausalLM, build_model

    start(torch.device("cpu"), ranks)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    rows = ROWS[job.arm](job, ranks)
    steps = batches(job, ranks, rows)
    model = build_model(CONFIG, seed=SEED, vocab_size=VOCABULARY, special={}, length=job.length)
    module: torch.nn.Module = Plain(model) if job.arm == "plain" else PackedCausalLM(model)
    named = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in named if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    config = {
        "train_micro_batch_size_per_gpu": job.micro_rows,
        "gradient_accumulation_steps": len(steps[0]),
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": ZERO_STAGE, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 40,
    }
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    for step in steps:
        for batch in step:
            if job.arm == "plain":
                loss = engine(input_ids=batch["input_ids"], labels=batch["input_ids"])
            else:
                loss = engine(**batch) / batch["labels"].numel()
            engine.backward(loss)
            engine.step()
        clock.tick()
    return {}


def tokens_of(job: Job, ranks: Any) -> int:
    """Tokens of documents in the measured steps, over all ranks."""
    if job.arm == "ours":
        job = Job.from_json(json.dumps({**json.loads(job.to_json()), "arm": "bare"}))
    rows = ROWS[job.arm](job, ranks)[job.warm_up :]
    mine = sum(len(row.tokens) for step in rows for row in step)
    total = torch.tensor([mine])
    torch.distributed.all_reduce(total)
    return int(total)


def main() -> None:
    """Run the arm."""
    from instructpt.training.engine import Ranks

    warnings.simplefilter("ignore")
    clock = Clock(job := Job.from_json(sys.argv[1]))
    torch.set_num_threads(1)
    os.environ["INSTRUCTPT_THREADS"] = os.environ["WORLD_SIZE"]
    ranks = Ranks.from_environment()
    found = ours(job, ranks, clock) if job.arm == "ours" else bare(job, ranks, clock)
    tokens = tokens_of(job, ranks)
    if ranks.rank == 0:
        figures = {"seconds": clock.seconds, "start_seconds": clock.start_seconds, "steps": job.steps, "tokens": tokens}
        print(json.dumps({**figures, **found}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)
