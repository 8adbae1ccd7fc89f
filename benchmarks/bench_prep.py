"""Text to packed token shards beside the usual way, and the packer beside other packers; one core each.

Text is what the installed Python packages say (``prep_text``), no piece twice; chains of M = 1, 2 and 5 documents with
pairs. Arms run one after the other in every repetition, each in a process of its own on one core.

    python benchmarks/bench_prep.py --megabytes 24 --output benchmarks/results/prep.json
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
import prep_text
from environment import command_line, commit, ended, environment
from prep_arms import Job, measure
from prep_tokenizers import TOKENIZERS, make
from summary import Run, Summary, figures, paired, summarize, write_result

PACKAGES = ("instructpt", "gigatoken", "tokenizers", "numpy", "pyarrow", "orjson")
FEWER = 10
"""trl packs one document in so many of the others: rates are compared."""


def jobs(folder: Path, documents: int, megabytes: float, *, check: bool) -> Iterator[Job]:
    """The arms of one repetition, in order."""
    job = functools.partial(Job, folder=str(folder))
    byte_level = str(folder / "byte-level")
    for arm, count in (("pack", documents), ("seqpacker", documents), ("trl", documents // FEWER)):
        yield job(arm=arm, documents=count, tokenizer=byte_level)
    for shots in prep_text.SHOTS:
        for arm in ("check", "ours", "hf_trl"):
            if check or arm != "check":
                yield job(arm=arm, shots=shots, tokenizer=byte_level)
    yield job(arm="copy", shots=1, tokenizer=byte_level)
    yield job(arm="load", tokenizer=byte_level)
    for name in TOKENIZERS:
        yield job(arm="fast", megabytes=megabytes, tokenizer=str(folder / name), shots=1)
        yield job(arm="hf", megabytes=min(megabytes, 4.0), tokenizer=str(folder / name), shots=1)


def run_all(
    folder: Path, documents: int, megabytes: float, repetitions: int, peer: Path | None, *, checked: bool = False
) -> Iterator[dict[str, Any]]:
    """Every arm, interleaved; one run at a time. Texts are compared one by one once, unless that was done before."""
    for repetition in range(repetitions):
        for job in jobs(folder, documents, megabytes, check=repetition == 0 and not checked):
            found = measure(job, peer)
            if found is not None:
                named = {"arm": job.arm, "shots": job.shots, "repetition": repetition}
                yield {**named, "tokenizer": Path(job.tokenizer).name, **found}


def rate(unit: str, seconds: str = "seconds", over: str = "") -> Callable[[Run], float | None]:
    """``unit`` a second of a run that has both."""
    return lambda run: float(run[over + unit]) / float(run[over + seconds]) if over + seconds in run else None


def _value(name: str) -> Callable[[Run], float | None]:
    return lambda run: float(run[name])


def _wall(run: Run) -> float:
    return float(run["seconds"])


def _seconds(run: Run) -> float:
    """Of the core: what a busy host does beside it does not count."""
    return float(run["cpu_seconds"])


def ratios(runs: Sequence[Run]) -> Summary:
    """The published figures. Ours and the usual way read the same texts: seconds are compared."""

    def of(what: Callable[[Run], float | None], arm: str, **where: Any) -> dict[int, float]:
        return figures(runs, what, arm=arm, **where)

    named: dict[str, list[float]] = {}
    load = of(_seconds, "load")
    for shots in prep_text.SHOTS:
        ending = "" if shots == 1 else f"_m{shots}"
        ours, usual = of(_seconds, "ours", shots=shots), of(_seconds, "hf_trl", shots=shots)
        named[f"ours_over_hf_trl{ending}"] = paired(usual, ours)
        walls = (of(_wall, arm, shots=shots) for arm in ("hf_trl", "ours"))
        named[f"ours_over_hf_trl{ending}_wall"] = paired(*walls)
        named[f"fill_shards_m{shots}"] = list(of(_value("fill"), "ours", shots=shots).values())
        for name in ("dropped_tokens", "unequal_texts", "undecoded_texts", "split_chains"):
            named.setdefault(name, []).extend(of(_value(name), "check", shots=shots).values())
        dropped = of(lambda run: float(run["dropped_tokens"] / run["tokens"]), "hf_trl", shots=shots)
        named[f"hf_trl_dropped_share_m{shots}"] = list(dropped.values())
    warm = {n: s - load[n] for n, s in of(_seconds, "ours", shots=1).items() if n in load}
    named["ours_over_hf_trl_without_load"] = paired(of(_seconds, "hf_trl", shots=1), warm)
    ours = of(rate("bytes", "cpu_seconds"), "ours", shots=1)
    fast = of(_whole, "fast", tokenizer="byte-level")
    copy = of(rate("bytes"), "copy")
    limit = {n: min(fast[n], copy[n]) for n in fast.keys() & copy.keys()}
    named["ours_over_limit"] = paired(ours, limit)
    warmed = {n: r * of(_seconds, "ours", shots=1)[n] / warm[n] for n, r in ours.items() if n in warm}
    named["ours_over_limit_without_load"] = paired(warmed, limit)
    for tokenizer in TOKENIZERS:
        slow = of(rate("bytes"), "hf", tokenizer=tokenizer)
        for over, name in (("", "cold"), ("unseen_", "unseen"), ("repeated_", "repeated")):
            found = of(rate("bytes", over=over), "fast", tokenizer=tokenizer)
            named[f"gigatoken_over_hf_{tokenizer.replace('-', '_')}_{name}"] = paired(found, slow)
    return summarize({**named, **_packers(of)})


def _packers(of: Callable[..., dict[int, float]]) -> dict[str, list[float]]:
    rows, assign = of(rate("documents"), "pack"), of(rate("documents", "assign_seconds"), "pack")
    seqpacker, trl = of(rate("documents"), "seqpacker"), of(rate("documents"), "trl")
    return {
        "packer_over_trl": paired(rows, trl),
        "packer_over_trl_one_batch": paired(rows, of(rate("documents", "one_batch_seconds"), "trl")),
        "packer_over_seqpacker": paired(rows, seqpacker),
        "packer_assign_over_trl": paired(assign, trl),
        "packer_assign_over_seqpacker": paired(assign, seqpacker),
        "packer_assign_documents_per_second": list(assign.values()),
        "packer_documents_per_second": list(rows.values()),
        "fill": list(of(_value("fill"), "pack").values()),
        "fill_seqpacker": list(of(_value("fill"), "seqpacker").values()),
        "fill_trl": list(of(_value("fill"), "trl").values()),
    }


def _whole(run: Run) -> float:
    """Cold and unseen text together, as ours meets it."""
    return float(run["bytes"] + run["unseen_bytes"]) / float(run["seconds"] + run["unseen_seconds"])


def main(arguments: list[str]) -> int:
    """Run the benchmark and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--megabytes", type=float, default=200.0, help="text, before pairs are added")
    parser.add_argument("--documents", type=int, default=1_000_000, help="for the packers alone")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--append", action="store_true", help="add repetitions to those in the output")
    options = parser.parse_args(arguments)
    peer = peers.interpreter("prep")
    folder = peers.cache() / f"prep-{options.megabytes:g}"
    text = prep_text.write(folder, int(options.megabytes * 1e6))
    make(folder)
    packages = ("trl", "datasets", "seqpacker")
    around = environment(
        PACKAGES,
        text=text,
        left_out={
            "llm-foundry": "asks for torch, composer and streaming: above 6 GB",
            "megatron-core": "its wheel has no preprocess_data, and it asks for torch",
        },
        peers={} if peer is None else peers.peer_versions(peer, packages),
    )
    runs: list[dict[str, Any]] = []
    if options.append and options.output.is_file():
        runs = json.loads(options.output.read_text())["runs"]

    def write() -> Summary:
        found = ratios(runs)
        if options.output is not None:
            write_result(
                options.output,
                runs=runs,
                summary=found,
                environment=ended(around),
                command=command_line(),
                commit=commit(),
            )
        return found

    before = 1 + max((run["repetition"] for run in runs), default=-1)
    for run in run_all(folder, options.documents, options.megabytes, options.repetitions, peer, checked=bool(runs)):
        runs.append({**run, "repetition": run["repetition"] + before})
        print(*(f"{key}={value}" for key, value in run.items()), flush=True)
        write()
    for left in folder.glob("tmp*"):
        shutil.rmtree(left)
    found = write()
    for title, value in found.medians.items():
        print(f"{title:<44} {value:>12}  {found.spread[title]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
