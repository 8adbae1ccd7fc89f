"""Write the tables of docs/contributor-guides/benchmarks.md from benchmarks/results.

The page's prose is written by hand; between ``<!-- BEGIN name -->`` and ``<!-- END name -->`` stands what this writes.
A figure with a goal that was missed stays in its table and says so, and so does a goal without a figure.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "contributor-guides" / "benchmarks.md"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio should be."""

    value: float
    at: Literal["least", "most"] = "least"
    moonshot: float | None = None

    def met(self, found: float) -> bool:
        """Whether it is."""
        return found >= self.value if self.at == "least" else found <= self.value

    def __str__(self) -> str:
        sign = "≥" if self.at == "least" else "≤"
        further = "" if self.moonshot is None else f" (moonshot {sign} {self.moonshot:g})"
        return f"{sign} {self.value:g}{further}"


GOALS: dict[str, dict[str, Goal]] = {
    "io": {
        "ours_over_limit": Goal(0.9),
        "ours_over_boto3_small": Goal(2.5, moonshot=5),
        "resume_seconds_late": Goal(1.0, "most"),
        "orders_over_world_sizes": Goal(1.0, "most"),
    },
    "prep": {
        "ours_over_hf_trl": Goal(8, moonshot=15),
        "ours_over_hf_trl_m2": Goal(8, moonshot=15),
        "ours_over_hf_trl_m5": Goal(8, moonshot=15),
        "packer_over_trl": Goal(50),
        "packer_over_seqpacker": Goal(3),
        "packer_assign_documents_per_second": Goal(2e7),
        "fill": Goal(0.9995),
        "split_chains": Goal(0, "most"),
        "dropped_tokens": Goal(0, "most"),
        "unequal_texts": Goal(0, "most"),
        "undecoded_texts": Goal(0, "most"),
    },
    "synthesis": {
        "ours_over_raw": Goal(0.97, moonshot=0.99),
        "ours_over_reference_m5": Goal(1.5, moonshot=2),
        "ours_over_reference_m3": Goal(1.0),
        "ours_over_reference_m2": Goal(1.0),
        "prefix_hits_over_attainable": Goal(0.95),
        "goodput_under_kills": Goal(0.95),
        "lost_documents": Goal(0, "most"),
        "doubled_documents": Goal(0, "most"),
        "ours_over_datatrove": Goal(1.1),
        "memory_mined_many_over_few": Goal(1.1, "most"),
        "memory_vllm_many_over_few": Goal(1.1, "most"),
    },
    "train": {
        "ours_over_bare": Goal(0.98, moonshot=0.995),
        "checkpoint_stall_over_save": Goal(0.05, "most"),
        "goodput_under_kills": Goal(0.90),
        "losses_other_than_undisturbed": Goal(0, "most"),
        "packed_over_padded": Goal(1.9),
        "packed_over_concatenated": Goal(0.97),
        "chunked_over_whole_peak_memory": Goal(0.6, "most"),
        "chunked_loss_difference": Goal(1e-6, "most"),
        "ours_over_hf_trainer": Goal(1.0),
        "ours_over_litgpt": Goal(1.0),
    },
    "fit": {"lowest": Goal(0.85), "highest": Goal(1.2, "most")},
}


def table(name: str, result: Mapping[str, Any]) -> str:
    """One benchmark: its ratios, goals first, and what it ran on."""
    goals, ratios, spread = GOALS[name], result["ratios"], result["spread"]
    lines = ["| ratio | median | quartiles | runs | goal | |", "| --- | ---: | --- | ---: | --- | --- |"]
    for ratio in sorted(ratios, key=lambda r: (r not in goals, list(goals).index(r) if r in goals else 0, r)):
        found, around, goal = ratios[ratio], spread[ratio], goals.get(ratio)
        verdict = "" if goal is None else ("met" if goal.met(found) else "**missed**")
        quartiles = f"{around['q1']:g} to {around['q3']:g}"
        lines.append(
            f"| `{ratio}` | {found:g} | {quartiles} | {around['runs']} | {'' if goal is None else goal} | {verdict} |"
        )
    lines += [
        f"| `{ratio}` | not measured | | 0 | {goals[ratio]} | **open** |" for ratio in goals if ratio not in ratios
    ]
    lines += ["", surroundings(name, result)]
    return "\n".join(lines)


def fit_table(result: Mapping[str, Any]) -> str:
    """What a plan says of memory, part by part, beside what was measured."""
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "logits", "overhead", "total")
    lines = [
        f"| model | parameters | micro batch | ZeRO | {' | '.join(parts)} | measured | predicted / measured |",
        f"| --- | ---: | ---: | ---: | {'---: | ' * len(parts)}---: | ---: |",
    ]
    for run in result["runs"]:
        cells = [f"{run[f'predicted_{part}'] / 1e6:,.0f}" for part in parts]
        lines.append(
            f"| {run['preset']} | {run['parameters'] / 1e6:.1f}M | {run['micro_batch_rows']} x "
            f"{run['sequence_length']} | {run['zero_stage']} | {' | '.join(cells)} "
            f"| {run['measured_total'] / 1e6:,.0f} | {run['ratio']:.2f} |"
        )
    goals = ", ".join(
        f"{name} {result['ratios'][name]:.2f} ({goal}: {'met' if goal.met(result['ratios'][name]) else '**missed**'})"
        for name, goal in GOALS["fit"].items()
        if name in result["ratios"]
    )
    return "\n".join([*lines, "", f"In MB (10^6 bytes). Of all: {goals}.", "", surroundings("fit", result)])


def surroundings(name: str, result: Mapping[str, Any]) -> str:
    """One paragraph on host, versions, load, command and commit."""
    env = result["environment"]
    versions = {**env["versions"], **env.get("peers", {})}
    named = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    load = f"{_load(env['load_average_before'])} before and {_load(env['load_average_after'])} after"
    return (
        f"[All runs](../../benchmarks/results/{name}.json), made by `{result['command']}` at commit "
        f"`{result['commit'][:12]}` on {env['cpu']}, {env['cpus']} cores, Python {env['python']}; load average {load}. "
        f"Versions: {named}."
    )


def _load(averages: list[float] | None) -> str:
    return "not noted" if averages is None else f"{averages[0]:g}"


def filled(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with every table written anew.

    Raises:
        ValueError: A result has no place in the page.
    """
    for name, result in results.items():
        block = re.compile(f"(<!-- BEGIN {name} -->\n).*?(<!-- END {name} -->)", re.DOTALL)
        text = fit_table(result) if name == "fit" else table(name, result)
        page, count = block.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{PAGE.name} needs one place <!-- BEGIN {name} --> ... <!-- END {name} -->, has {count}")
    return page


def load_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The result files that have goals here, by benchmark."""
    return {name: json.loads(path.read_text()) for name in GOALS if (path := folder / f"{name}.json").is_file()}


def main() -> int:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), load_results()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
