"""One rank of a training whose memory is measured; bench_fit starts two, each with the case as JSON on stdin.

Peak is the highest resident memory between the idle baseline (libraries loaded, process group joined) and the end of
the last step, as the kernel counts it (VmHWM, reset at the baseline). Prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def memory() -> tuple[int, int]:
    """Resident bytes now, and at their highest since the last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def settle() -> int:
    """Resident bytes once what is free was given back; the highest is counted from here on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory()[0]


def batch(case: dict[str, Any], seed: int) -> Any:
    """A micro batch of full rows of two documents each."""
    from instructpt.training.batches import make_batch
    from instructpt.training.tokenshards import Row

    length, vocabulary = case["sequence_length"], case["vocabulary"]
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(case["micro_batch_rows"]):
        targets = np.ones(length, dtype=bool)
        targets[[0, length // 2]] = False
        ids = random.integers(3, vocabulary, length)
        rows.append(Row(tokens=ids, segments=np.array([0, length // 2, length]), targets=targets))
    return make_batch(rows, length, SPECIAL["pad_token_id"])


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Measure one case on this rank."""
    import deepspeed  # noqa: F401  # of the baseline
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from instructpt.api.v1alpha1.trainingjob import Optimizer
    from instructpt.training.engine import Engine, EngineSettings, Ranks, start
    from instructpt.training.loop import to_tensors
    from instructpt.training.model import PackedCausalLM, build_model

    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    device = torch.device("cpu")
    start(device, ranks)
    torch.distributed.all_reduce(torch.zeros(1 << 16))  # the buffers of the first collective
    idle = settle()
    model = build_model(
        case["config"], seed=1, vocab_size=case["vocabulary"], special=SPECIAL, length=case["sequence_length"]
    )
    settings = EngineSettings(
        zero_stage=case["zero_stage"],
        precision="fp32",
        gradient_clip=1.0,
        optimizer=Optimizer(),
        micro_batches=case["micro_batches"],
        micro_batch_rows=case["micro_batch_rows"],
    )
    module = PackedCausalLM(model)
    engine = Engine(module, settings, ranks)
    started = memory()[1]
    peaks = []
    for step in range(case["steps"]):
        for number in range(case["micro_batches"]):
            args = to_tensors(batch(case, 100 * step + 10 * number + ranks.rank), device)
            engine.accumulate(args, case["sequence_length"])
        engine.step(1e-4)
        peaks.append(memory()[1] - idle)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
    return {
        "rank": ranks.rank,
        "idle_bytes": idle,
        "start_peak_bytes": started - idle,
        "step_peak_bytes": peaks,
        "peak_bytes": peaks[-1],
        "parameters": parameters,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.stdin.read()))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of the collectives may outlive the interpreter
