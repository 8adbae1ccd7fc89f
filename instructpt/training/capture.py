"""What a checkpoint of one rank is made of: its share of the state, random state, data position, and records so far.

It is copied to host memory beside the next step's passes, which change none of it; files are written from that copy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructpt.corpus.manifest import FileEntry
from instructpt.errors import TrainingError
from instructpt.storage.hashing import sha256_of_file
from instructpt.telemetry.progress import Progress
from instructpt.training import metrics
from instructpt.training.checkpoint import TRAINER, part_name
from instructpt.training.engine import Engine, Ranks
from instructpt.training.mixture import Mixture
from instructpt.training.parts import Flat, HostCopy, Parts, write_part
from instructpt.training.saver import Snapshot


class Capture:
    """Copies the state of one rank, and restores it.

    Args:
        engine: Holds weights and moments; its host memory is set aside here, so that no copy waits for it.
        recorder: Of rank 0.
        mixture: Says where in the data a step stands.
        ranks: This process.
        seed: Of the training.
    """

    def __init__(
        self, engine: Engine, recorder: metrics.Recorder, mixture: Mixture, ranks: Ranks, *, seed: int
    ) -> None:
        self._engine, self._recorder, self._mixture, self._ranks, self._seed = engine, recorder, mixture, ranks, seed
        self._host = HostCopy(engine.flats())

    def __call__(self, step: int) -> Snapshot:
        """The state after so many steps."""
        live, copied = self._engine.flats(), list[Flat]()
        done = torch.cuda.current_stream().record_event() if self._engine.device.type == "cuda" else None
        small = {f"{self._prefix}{name}": t for name, t in random_state(self._engine.device).items()}
        kept = metrics.Recorder(steps=0, flops_per_token=0.0, peak_flops=None, progress=Progress())
        kept.results, kept.throughput = list(self._recorder.results), list(self._recorder.throughput)
        kept.validation = list(self._recorder.validation)

        def write(folder: Path) -> list[FileEntry]:
            files = [write_part(folder / part_name(self._ranks.rank, self._ranks.world_size), copied, small)]
            if self._ranks.rank == 0:
                kept.write(folder)
                (folder / TRAINER).write_text(json.dumps(self._position(step)), encoding="utf-8")
                files += [_entry(folder / name) for name in (metrics.METRICS, metrics.THROUGHPUT, TRAINER)]
                files += [_entry(folder / metrics.VALIDATION)] if kept.validation else []
            return files

        return Snapshot(copy=lambda: copied.extend(self._host.take(live, done)), write=write)

    def restore(self, folder: Path, parts: Parts, step: int) -> None:
        """Take up records and random state; the data position is arithmetic and has to be the one that was kept.

        Raises:
            TrainingError: The checkpoint stands elsewhere in the data than this training does after so many steps.
        """
        kept, now = json.loads((folder / TRAINER).read_text(encoding="utf-8")), self._position(step)
        if kept != now:
            raise TrainingError(f"the checkpoint after step {step} stands at {kept}, this training at {now}")
        self._recorder.restore(folder)
        state = parts.small(self._prefix)  # of the same rank; another number of ranks begins anew
        if state:
            set_random_state(state, self._engine.device)

    @property
    def _prefix(self) -> str:
        return f"random.{self._ranks.world_size}.{self._ranks.rank}."

    def _position(self, step: int) -> dict[str, Any]:
        """Where the next step begins, whatever the number of ranks."""
        row = min(self._mixture.rows, step * self._mixture.batch_rows)
        return {"step": step, "seed": self._seed, "next_row": row, "rows": self._mixture.rows}


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch, on the CPU and on the device."""
    out = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Continue with what :func:`random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _entry(path: Path) -> FileEntry:
    return FileEntry(path=path.name, bytes=path.stat().st_size, sha256=sha256_of_file(path))
