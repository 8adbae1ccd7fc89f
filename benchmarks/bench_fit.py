"""What `instructpt plan` says of memory beside what two ranks need: three presets, ZeRO 1, 2 and 3, on the CPU.

Measured is the highest resident memory of a rank over its idle baseline (see fit_rank), of the ranks the larger one.
The trainer's own engine, model and batches run some steps of random ids, at the sizes that stand in each run:
``tiny`` and ``125m`` are whole, ``350m`` has its depth at half its width, so that two ranks fit a machine of 24 GiB.

    python benchmarks/bench_fit.py --output benchmarks/results/fit.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import ROOT, command_line, commit, ended, environment
from summary import Run, Summary, summarize, write_result

from instructpt.api.presets import PRESETS, num_parameters
from instructpt.plan.fit import Layout, Shape, fit

PACKAGES = ("instructpt", "torch", "deepspeed", "transformers", "numpy")
RANKS = 2
STAGES = (1, 2, 3)
HALF = {"hidden_size": 512, "intermediate_size": 1368, "num_attention_heads": 8, "num_key_value_heads": 8}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "config": PRESETS["tiny"], "vocabulary": 4096, "sequence_length": 1024, "micro_batch_rows": 4, "steps": 3,
    },
    "125m": {
        "config": PRESETS["125m"], "vocabulary": 32_000, "sequence_length": 256, "micro_batch_rows": 2, "steps": 2,
    },
    "350m at half width": {
        "config": PRESETS["350m"] | HALF, "vocabulary": 32_000, "sequence_length": 256, "micro_batch_rows": 2,
        "steps": 2,
    },
}  # fmt: skip
MICRO_BATCHES = 2


def cases(presets: list[str]) -> Iterator[dict[str, Any]]:
    """One for each preset and stage."""
    for name in presets:
        for stage in STAGES:
            yield {"preset": name, "zero_stage": stage, "micro_batches": MICRO_BATCHES, **SIZES[name]}


def predicted(case: dict[str, Any]) -> dict[str, int]:
    """What the plan says of a case."""
    vocabulary = case["vocabulary"]
    shape = Shape.of(case["config"], num_parameters(case["config"], vocabulary), vocabulary)
    layout = Layout(
        zero_stage=case["zero_stage"], ranks=RANKS, tokens=case["micro_batch_rows"] * case["sequence_length"],
        micro_batches=case["micro_batches"], precision="fp32", device="cpu",
    )  # fmt: skip
    return {"parameters": shape.parameters, **fit(shape, layout).to_dict()}


def measured(case: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank needed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(RANKS):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        more = {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "fit_rank.py")],
                env={**os.environ, **more, **{name: str(value) for name, value in names.items()}},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write(json.dumps(case))
        process.stdin.close()
        process.stdin = None
    found = []
    for process in ranks:
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"a rank ended with {process.returncode}: {err[-2000:]}")
        found.append(json.loads(out.strip().splitlines()[-1]))
    return found


def run(case: dict[str, Any], repetition: int) -> dict[str, Any]:
    """One case: sizes, the parts of the prediction, what was measured, and their ratio."""
    plan, ranks = predicted(case), measured(case)
    assert all(rank["parameters"] == plan["parameters"] for rank in ranks), "the preset is counted wrongly"
    peak = max(rank["peak_bytes"] for rank in ranks)
    sizes = {k: v for k, v in case.items() if k != "config"}
    parts = {f"predicted_{k}": v for k, v in plan.items() if k != "parameters"}
    return {
        **sizes, "repetition": repetition, "ranks": RANKS, "parameters": plan["parameters"], **parts,
        "measured_total": peak, "measured_by_rank": [rank["peak_bytes"] for rank in ranks],
        "measured_start": max(rank["start_peak_bytes"] for rank in ranks), "ratio": plan["total"] / peak,
    }  # fmt: skip


def ratios(runs: list[Run]) -> Summary:
    """Predicted over measured, of each case, and the lowest and the highest of all."""
    named: dict[str, list[float]] = {}
    for entry in runs:
        named.setdefault(f"{entry['preset']}, ZeRO {entry['zero_stage']}", []).append(float(entry["ratio"]))
    all_ = [float(entry["ratio"]) for entry in runs]
    return summarize({"lowest": [min(all_)], "highest": [max(all_)], **named} if all_ else {})


def main(arguments: list[str]) -> int:
    """Run the benchmark and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--presets", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--add", action="store_true", help="keep the runs of other presets in the file")
    options = parser.parse_args(arguments)
    runs: list[Run] = []
    if options.add and options.output is not None and options.output.is_file():
        kept = json.loads(options.output.read_text())["runs"]
        runs = [entry for entry in kept if entry["preset"] not in options.presets]
    around = environment(PACKAGES)
    for repetition in range(options.repetitions):
        for case in cases(options.presets):
            found = run(case, repetition)
            runs.append(found)
            print(*(f"{k}={found[k]}" for k in ("preset", "zero_stage", "predicted_total", "measured_total", "ratio")),
                  flush=True)  # fmt: skip
            if options.output is not None:
                write_result(
                    options.output, runs=runs, summary=ratios(runs), environment=ended(around), command=command_line(),
                    commit=commit(),
                )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
