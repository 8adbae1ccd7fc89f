"""Benchmarks made of groups that are measured apart: what an earlier run found of the others is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from environment import ended, environment, load
from summary import Run

Surroundings = dict[str, list[Any]]
"""By group, what each of its runs was made with: command, commit, load, peers."""


def earlier(path: Path | None, dropped: Sequence[str]) -> tuple[list[Run], Surroundings]:
    """Runs of a result, and surroundings by group, but for groups that are measured anew."""
    if path is None or not path.exists():
        return [], {}
    result = json.loads(path.read_text())
    kept = {name: list(where) for name, where in result["environment"]["groups"].items() if name not in dropped}
    return [run for run in result["runs"] if run["group"] in kept], kept


def next_repetition(runs: Sequence[Run], group: str) -> int:
    """The number of a group's next repetition."""
    return max((int(run["repetition"]) + 1 for run in runs if run["group"] == group), default=0)


def run_group(
    group: str,
    arms: Callable[[int], Iterator[Mapping[str, Any]]],
    repetitions: int,
    around: dict[str, Any],
    runs: list[Run],
    groups: Surroundings,
    written: Callable[[], object],
) -> None:
    """Run a group; each run is printed and written at once, so that a run cut short loses nothing.

    Args:
        group: Its name.
        arms: Runs every arm in the repetition of this number.
        repetitions: How many.
        around: What it is run with.
        runs: Those so far; its own are added.
        groups: As ``runs``.
        written: Writes the result so far.
    """
    groups.setdefault(group, []).append(around)
    first = next_repetition(runs, group)
    for repetition in range(first, first + repetitions):
        for run in arms(repetition):
            runs.append({"group": group, **run})
            groups[group][-1] = ended(around)
            print(*(f"{key}={value}" for key, value in runs[-1].items()), flush=True)
            written()


def about(packages: Sequence[str], groups: Mapping[str, Sequence[Mapping[str, Any]]], **more: Any) -> dict[str, Any]:
    """Surroundings of the whole result: the first load before, the last after, all peers, and each group's own."""
    every = [where for around in groups.values() for where in around]
    return {
        **environment(packages),
        "load_average_before": every[0]["load_average_before"],
        "load_average_after": every[-1].get("load_average_after", load()),
        "peers": {name: version for where in every for name, version in where["peers"].items()},
        **more,
        "groups": groups,
    }


def commands(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Every command that made a part of the result, once."""
    return "; ".join(dict.fromkeys(where["command"] for around in groups.values() for where in around))


def last_commit(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Of the group that was run last."""
    return str([where for around in groups.values() for where in around][-1]["commit"])
