"""How long a checkpoint holds the training up: ours beside DeepSpeed's ``engine.save_checkpoint``, on the same state.

One rank under torchrun: ``train_checkpoint.py CHECKPOINTS FOLDER STAGE``; rank 0 prints one line of JSON. Both write to
the same local disk. Every figure is that of the slowest rank:

- *deepspeed*: ``save_checkpoint``, for all of which the training stands still;
- *stall*: what ours holds it up: to begin, and what the next update waits for the copy after a forward and a backward
  pass; *copy* is that copy by itself, with nothing beside it;
- *step* and *slowed*: passes and update without a checkpoint, and those beside which one is copied, written and
  verified, on the same two cores;
- *behind*: until ``LATEST`` names it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
VOCABULARY, LENGTH, ROWS, SEED = 4096, 256, 8, 11


class Trained:
    """An engine after one step, so that it has all its state."""

    def __init__(self, zero_stage: int) -> None:
        import torch

        from instructpt.api.v1alpha1.trainingjob import Optimizer
        from instructpt.training.engine import Engine, EngineSettings, Ranks, start
        from instructpt.training.model import build_model

        class Loss(torch.nn.Module):
            """Of the model of transformers as it comes: what is measured is its state."""

            def __init__(self) -> None:
                super().__init__()
                self.model = build_model(CONFIG, seed=SEED, vocab_size=VOCABULARY, special={}, length=LENGTH)

            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                out: torch.Tensor = self.model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
                return out

        self.ranks = Ranks.from_environment()
        start(torch.device("cpu"), self.ranks)
        settings = EngineSettings(
            zero_stage=zero_stage, precision="fp32", gradient_clip=1.0, optimizer=Optimizer(), micro_batches=1,
            micro_batch_rows=ROWS,
        )  # fmt: skip
        module = Loss()
        self.parameters = sum(p.numel() for p in module.parameters())
        self.engine = Engine(module, settings, self.ranks)
        self._batch = {"input_ids": torch.randint(0, VOCABULARY, (ROWS, LENGTH))}
        self.step(lambda: None)

    def step(self, before_update: Callable[[], object]) -> None:
        """One of the training."""
        self.engine.accumulate(self._batch, 1)
        before_update()
        self.engine.step(1e-4)

    def together(self, what: Callable[[], object]) -> float:
        """Seconds of the slowest rank; all begin together."""
        self.engine.gather(None)
        begun = time.perf_counter()
        what()
        return float(max(self.engine.gather(time.perf_counter() - begun)))


def measure(trained: Trained, number: int, folder: Path) -> dict[str, float]:
    """Both checkpoints once, ours first in every other one."""
    found: dict[str, float] = {}
    arms = [_ours, _theirs]
    for arm in arms if number % 2 == 0 else arms[::-1]:
        found |= arm(trained, number, folder)
    return found


def _theirs(trained: Trained, number: int, folder: Path) -> dict[str, float]:
    target = folder / "deepspeed"
    seconds = trained.together(lambda: trained.engine._engine.save_checkpoint(str(target), tag=str(number)))
    trained.engine.gather(None)
    if trained.ranks.rank == 0:
        shutil.rmtree(target)
    return {"deepspeed_seconds": seconds}


def _ours(trained: Trained, number: int, folder: Path) -> dict[str, float]:
    saver, step = _saver(trained, folder), number + 1
    found = {
        "copy_seconds": trained.together(lambda: saver._capture._host.take(trained.engine.flats())),
        "step_seconds": trained.together(lambda: trained.step(lambda: None)),
    }
    begun = time.perf_counter()
    begin = trained.together(lambda: saver._begin(step))
    waited: list[float] = []

    def before_update() -> None:
        since = time.perf_counter()
        saver.before_update()
        waited.append(time.perf_counter() - since)

    found["slowed_seconds"] = trained.together(lambda: trained.step(before_update))
    found["stall_seconds"] = begin + max(trained.engine.gather(waited[0]))
    saver.drain()
    assert saver.step == step, "the checkpoint was not stored"
    found["behind_seconds"] = max(trained.engine.gather(time.perf_counter() - begun))
    return found


_SAVERS: list[Any] = []


def _saver(trained: Trained, folder: Path) -> Any:
    """One for all checkpoints, as in a training: its memory is set aside before the first."""
    if not _SAVERS:
        import numpy as np
        import torch

        from instructpt.storage import open_store
        from instructpt.telemetry.progress import Progress
        from instructpt.training import metrics
        from instructpt.training.capture import Capture
        from instructpt.training.mixture import Mixture, SourceRows
        from instructpt.training.saver import Group, Saver

        counts = np.full(8, LENGTH)
        rows = SourceRows(name="rows", weight=1.0, max_repeats=1, tokens=counts, documents=counts)
        mixture = Mixture([rows], tokens=8 * LENGTH, batch_rows=1, seed=SEED)
        recorder = metrics.Recorder(steps=0, flops_per_token=0.0, peak_flops=None, progress=Progress())
        engine, ranks = trained.engine, trained.ranks

        def total(values: Any) -> list[float]:
            return [float(v) for v in engine.all_sum(torch.tensor(values, dtype=torch.float64)).tolist()]

        _SAVERS.append(Saver(
            open_store(str(folder / "ours")), "key", folder / "scratch",
            Group(rank=ranks.rank, size=ranks.world_size, gather=engine.gather, total=total),
            Capture(engine, recorder, mixture, ranks, seed=SEED), life="bench", every=1, keep=1, progress=Progress(),
        ))  # fmt: skip
    return _SAVERS[0]


def main() -> None:
    """Measure so many checkpoints after one that warms both up."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    checkpoints, folder, stage = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    trained = Trained(stage)
    runs = [measure(trained, number, folder) for number in range(checkpoints + 1)][1:]
    if trained.ranks.rank == 0:
        print(json.dumps({"parameters": trained.parameters, "zero_stage": stage, "checkpoints": runs}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)
