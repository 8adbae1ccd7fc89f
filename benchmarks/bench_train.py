"""Our training loop beside a bare DeepSpeed loop and other trainers; packed beside padded rows; the loss in pieces.

Two ranks over gloo on the CPU, one thread each, a Llama of 4.2M parameters in fp32, ZeRO stage 1. Arms run one after
the other in every repetition, each in processes of its own; what is measured begins after a warm-up.

    python benchmarks/bench_train.py --output benchmarks/results/train.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peers
import train_goodput
from environment import ROOT, command_line, commit, environment
from grouped import about, commands, earlier, last_commit, run_group
from summary import Run, Summary, figures, paired, summarize, write_result
from train_fixture import CONFIG, VOCABULARY, Job, prepare

PACKAGES = ("instructpt", "torch", "transformers", "deepspeed", "numpy")
RANKS = 2
CHECKPOINTS = 10
GOODPUT_STEPS, GOODPUT_SECONDS = 260, 280.0
ONCE = ("undisturbed", "killed-300", "killed-90")
"""Groups of which one repetition is enough: a run of minutes each. They are compared with each other."""
PEER_PACKAGES = {"hf-trainer": ("accelerate",), "litgpt": ("litgpt", "lightning")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a group runs with.

    Attributes:
        folder: For everything that is written.
        job: Sizes; arm and output are set for each run.
        peers: Python of each peer's environment; None for one that cannot be installed.
    """

    folder: Path
    job: Job
    peers: Mapping[str, Path | None]

    def arm(self, name: str, **changes: Any) -> dict[str, Any] | None:
        """One run of an arm, in new processes; None where its environment is missing."""
        output = self.folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        job = replace(self.job, arm=name, output=str(output), **changes)
        python, script = Path(sys.executable), "train_arms.py"
        if name in self.peers:
            if self.peers[name] is None:
                return None
            python, script = Path(str(self.peers[name])), "train_peers.py"
        return line_of(torchrun(python, ROOT / "benchmarks" / script, job.to_json()))

    def loss(self, kind: str) -> dict[str, Any]:
        """One step with the loss of a kind, in a process of its own."""
        return line_of([sys.executable, str(ROOT / "benchmarks" / "train_loss.py"), kind])


def torchrun(python: Path, script: Path, *arguments: str) -> list[str]:
    """The command of all ranks."""
    head = [str(python), "-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1"]
    return [*head, f"--nproc_per_node={RANKS}", str(script), *arguments]


def line_of(command: Sequence[str]) -> dict[str, Any]:
    """Run a command; the JSON in its last line that has some.

    Raises:
        RuntimeError: It failed, with the end of what it said.
    """
    paths = [str(ROOT), str(ROOT / "benchmarks")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env["TOKENIZERS_PARALLELISM"] = "false"
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def loop_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """Ours beside the limit; each comes first in every other repetition."""
    arms = ["bare", "ours"] if repetition % 2 == 0 else ["ours", "bare"]
    yield from _runs(bench, repetition, arms)


def peers_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """Ours beside other trainers."""
    yield from _runs(bench, repetition, ["ours", "hf-trainer", "litgpt"])


def packing_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """Packed rows beside padded and concatenated ones, and the model as it comes, all in the bare loop."""
    yield from _runs(bench, repetition, ["bare", "padded", "concatenated", "plain"])


def loss_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """The loss in pieces beside the loss over all logits."""
    for kind in ("whole", "chunked"):
        yield {"arm": kind, "repetition": repetition, **bench.loss(kind)}


def checkpoint_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """How long a checkpoint holds the training up, beside DeepSpeed's own, in two ZeRO stages."""
    for stage in (1, 3):
        folder = bench.folder / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        script = ROOT / "benchmarks" / "train_checkpoint.py"
        found = line_of(torchrun(Path(sys.executable), script, str(CHECKPOINTS), str(folder), str(stage)))
        for run in found.pop("checkpoints"):
            yield {"arm": f"stage-{stage}", "repetition": repetition, **found, **run}


def killed_group(bench: Bench, repetition: int, period: float | None) -> Iterator[dict[str, Any]]:
    """A run under ``instructpt run``, one of whose ranks is killed every ``period`` seconds; None for never."""
    folder = bench.folder / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    found = train_goodput.measure(
        folder, Path(bench.job.folder) / "text.jsonl", steps=GOODPUT_STEPS, period=period, seconds=GOODPUT_SECONDS
    )
    yield {"arm": "undisturbed" if period is None else f"every {period:g} s", "repetition": repetition, **found}


def _runs(bench: Bench, repetition: int, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    for arm in arms:
        found = bench.arm(arm)
        if found is not None:
            yield {"arm": arm, "repetition": repetition, **found}


GROUPS: dict[str, Callable[[Bench, int], Iterator[dict[str, Any]]]] = {
    "loop": loop_group,
    "peers": peers_group,
    "packing": packing_group,
    "loss": loss_group,
    "checkpoint": checkpoint_group,
    "undisturbed": partial(killed_group, period=None),
    "killed-300": partial(killed_group, period=300.0),
    "killed-90": partial(killed_group, period=90.0),
}
"""A group is measured together, and compares its own runs alone."""


def tokens_per_second(run: Run) -> float:
    """Tokens of documents in the measured steps, over their wall time."""
    return float(run["tokens"]) / float(run["seconds"])


def ratios(runs: Sequence[Run]) -> Summary:
    """The published figures: of each repetition, what is compared ran beside each other."""

    def rate(group: str, arm: str) -> dict[int, float]:
        return figures(runs, tokens_per_second, group=group, arm=arm)

    def of(arm: str, name: str) -> dict[int, float]:
        return figures(runs, lambda run: float(run[name]), group="loss", arm=arm)

    named = {
        "ours_over_bare": paired(rate("loop", "ours"), rate("loop", "bare")),
        "ours_over_hf_trainer": paired(rate("peers", "ours"), rate("peers", "hf-trainer")),
        "ours_over_litgpt": paired(rate("peers", "ours"), rate("peers", "litgpt")),
        "packed_over_padded": paired(rate("packing", "bare"), rate("packing", "padded")),
        "packed_over_concatenated": paired(rate("packing", "bare"), rate("packing", "concatenated")),
        "packed_over_plain_model": paired(rate("packing", "bare"), rate("packing", "plain")),
        "checkpoint_stall_over_save": _stalls(runs, "stall_seconds"),
        "checkpoint_copy_over_save": _stalls(runs, "copy_seconds"),
        "step_with_checkpoint_over_without": [
            float(run["slowed_seconds"]) / float(run["step_seconds"]) for run in runs if run["group"] == "checkpoint"
        ],
        "goodput_under_kills": list(figures(runs, goodput, group="killed-300").values()),
        "goodput_under_kills_90": list(figures(runs, goodput, group="killed-90").values()),
        "restart_seconds": [float(run["restart_seconds"]) for run in runs if run.get("kills")],
        "losses_other_than_undisturbed": train_goodput.differing(runs),
        "chunked_over_whole_peak_memory": paired(of("chunked", "peak_bytes"), of("whole", "peak_bytes")),
        "chunked_over_whole_seconds": paired(of("chunked", "seconds"), of("whole", "seconds")),
    }
    whole, chunked = of("whole", "loss"), of("chunked", "loss")
    named["chunked_loss_difference"] = [abs(chunked[n] - whole[n]) for n in sorted(whole.keys() & chunked.keys())]
    return summarize(named)


def _stalls(runs: Sequence[Run], name: str) -> list[float]:
    return [float(run[name]) / float(run["deepspeed_seconds"]) for run in runs if run["group"] == "checkpoint"]


def goodput(run: Run) -> float:
    """Seconds of steps that count, over all seconds."""
    return float(run["useful_seconds"]) / float(run["wall_seconds"])


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--groups", default=",".join(GROUPS), help="some of " + ", ".join(GROUPS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="repetitions to those that the output has of a group")
    parser.add_argument("--steps", type=int, default=20, help="that are measured in a run; a checkpoint is among them")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before those")
    parser.add_argument("--rows", type=int, default=16, help="of a step, over both ranks")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    options.groups = options.groups.split(",")
    if unknown := set(options.groups) - GROUPS.keys():
        parser.error(f"--groups: no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return options


def main(arguments: list[str]) -> int:
    """Run the groups and write the result."""
    options = parse(arguments)
    found_peers = {name: peers.interpreter(name) for name in PEER_PACKAGES} if "peers" in options.groups else {}
    runs, groups = earlier(options.output, [] if options.add else options.groups)
    with tempfile.TemporaryDirectory() as name:
        job = Job(
            arm="", folder=str(Path(name) / "fixture"), output="", steps=options.steps, warm_up=options.warm_up,
            length=options.length, rows=options.rows, micro_rows=max(1, options.rows // RANKS), every=20,
        )  # fmt: skip
        prepare(Path(job.folder), job.length, (job.total + 3) * job.rows * job.length)
        bench = Bench(folder=Path(name), job=job, peers=found_peers)
        for group in options.groups:
            around = environment((), command=command_line(), commit=commit(), peers=versions_of(found_peers))
            repetitions = 1 if group in ONCE else options.repetitions
            written = partial(write, options.output, runs, groups)
            run_group(group, partial(GROUPS[group], bench), repetitions, around, runs, groups, written)
    for title, value in (found := ratios(runs)).medians.items():
        print(f"{title:<34} {value:>10}  {found.spread[title]}")
    return 0


def write(path: Path | None, runs: Sequence[Run], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The result so far, where one is wanted."""
    if path is not None:
        around = about(PACKAGES, groups, model={**CONFIG, "vocab_size": VOCABULARY}, ranks=RANKS)
        summary = ratios(runs)
        write_result(
            path, runs=runs, summary=summary, environment=around, command=commands(groups), commit=last_commit(groups)
        )


def versions_of(found: Mapping[str, Path | None]) -> dict[str, str]:
    """Of the peers that are there."""
    out: dict[str, str] = {}
    for name, python in found.items():
        if python is not None:
            out |= peers.peer_versions(python, PEER_PACKAGES[name])
    return out


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
