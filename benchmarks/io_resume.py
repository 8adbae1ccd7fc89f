"""Resuming a training: seconds to the first batch at a step, and the order of rows at several world sizes.

Uses the trainer's own token shards and mixture. A process of its own for each look, as after a restart; the clock runs
from the opened folder to the arrays of the first batch. ``replay`` is the peer: a loader that cannot jump and
reads every row before the step again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS, ROW_TOKENS, SHARDS, BATCH_ROWS, STEPS = 1_000_000, 32, 8, 8, 1_000_002
WORLD_SIZES = (1, 2, 4, 8)


def write_tokens(folder: Path, rows: int = ROWS) -> None:
    """Token shards of ``rows`` rows, drawn from a seed."""
    from instructpt.training.tokenshards import write_shard

    source = np.random.Generator(np.random.PCG64(20261121))
    each = rows // SHARDS
    for shard in range(SHARDS):
        bounds = np.arange(each + 1, dtype=np.int64)
        arrays = {
            "tokens": source.integers(0, 1 << 15, each * ROW_TOKENS).astype("<u2"),
            "row_tokens": bounds * ROW_TOKENS,
            "row_segments": bounds,
            "segment_tokens": bounds * ROW_TOKENS,
            "segment_documents": np.ones(each, dtype="<u4"),
            "row_loss": np.full(each, ROW_TOKENS - 1, dtype="<u4"),
        }
        write_shard(folder / f"{shard}.tokens", arrays, sequence_length=ROW_TOKENS)


def opened(folder: Path, *, repeats: int = 100) -> tuple[Any, Any]:
    """The source and its order, as a rank opens them."""
    from instructpt.api.runspec import TrainSource
    from instructpt.training.dataset import Fetched, TokenSource
    from instructpt.training.mixture import Mixture

    paths = tuple(str(path) for path in sorted(folder.glob("*.tokens")))
    named = TrainSource(uri=str(folder), name="benchmark", weight=1.0, max_repeats=repeats)
    source = TokenSource(named, Fetched(digest="", paths=paths))
    tokens = STEPS * BATCH_ROWS * ROW_TOKENS
    return source, Mixture([source.rows()], tokens=tokens, batch_rows=BATCH_ROWS, seed=7)


def batch(source: Any, mixture: Any, step: int, rank: int = 0, world_size: int = 1) -> Any:
    """What a rank sees in a step; the trainer's expression."""
    from instructpt.training.batches import micro_batches

    slots = mixture.step(step)[rank::world_size]
    rows = [source.row(slot.row).head(slot.tokens) for slot in slots]
    return micro_batches(rows, BATCH_ROWS, 1, ROW_TOKENS, 0)[0]


def first_batch(folder: Path, step: int, *, replay: bool) -> dict[str, Any]:
    """Seconds to the batch of ``step`` in a process that has just started."""
    import instructpt.training.batches
    import instructpt.training.dataset
    import instructpt.training.mixture  # noqa: F401  # loaded before the clock starts

    begun = time.perf_counter()
    source, mixture = opened(folder)
    if replay:
        for before in range(step):
            batch(source, mixture, before)
    ids = batch(source, mixture, step).input_ids
    return {"seconds": time.perf_counter() - begun, "digest": hashlib.sha256(ids.tobytes()).hexdigest()[:16]}


def orders(source: Any, mixture: Any, steps: list[int]) -> dict[int, str]:
    """By world size: a hash of the rows of some steps, put together from what each rank sees."""
    found = {}
    for size in WORLD_SIZES:
        digest = hashlib.sha256()
        for step in steps:
            ids = np.zeros((BATCH_ROWS, ROW_TOKENS), dtype=np.int64)
            for rank in range(size):
                ids[rank::size] = batch(source, mixture, step, rank, size).input_ids
            digest.update(ids.tobytes())
        found[size] = digest.hexdigest()[:16]
    return found


def look(folder: Path, step: int, *, replay: bool) -> dict[str, Any]:
    """:func:`first_batch` in a process of its own."""
    command = [sys.executable, __file__, str(folder), str(step), "replay" if replay else "jump"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(first_batch(Path(sys.argv[1]), int(sys.argv[2]), replay=sys.argv[3] == "replay")))
