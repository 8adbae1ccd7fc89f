"""Runs of ``bench-synthesis`` -> published ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from summary import Run, Summary, figures, paired, summarize

TEN_MINUTES = 600.0


def tokens_per_second(run: Run) -> float:
    """Completion tokens."""
    return float(run["completion_tokens"]) / float(run["seconds"])


def documents_per_second(run: Run) -> float:
    """Documents, each once."""
    return float(run["documents"]) / float(run["seconds"])


def prefix_hits(run: Run) -> float | None:
    """Of the prompt tokens that an endless cache would have held, the share that was found; None where none would."""
    return None if not run.get("attainable_tokens") else float(run["cached_tokens"]) / float(run["attainable_tokens"])


def seconds(run: Run) -> float:
    """Of a run."""
    return float(run["seconds"])


def ratios(runs: Sequence[Run]) -> Summary:
    """Every ratio whose arms were run."""
    named: dict[str, list[float]] = {}
    named |= _engine(runs)
    named |= _chains(runs)
    named |= _chaos(runs)
    named |= _memory(runs)
    return summarize(named)


def _engine(runs: Sequence[Run]) -> dict[str, list[float]]:
    rates = {arm: figures(runs, tokens_per_second, group="engine", arm=arm) for arm in ("raw", "ours", "datatrove")}
    return {
        "ours_over_raw": paired(rates["ours"], rates["raw"]),
        "ours_over_datatrove": paired(rates["ours"], rates["datatrove"]),
        "datatrove_over_raw": paired(rates["datatrove"], rates["raw"]),
    }


def _chains(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Wall time of the reference over ours, over the same documents."""
    named: dict[str, list[float]] = {}
    for shots in (5, 3, 2):
        ours = figures(runs, seconds, group="chains", arm="ours", shots=shots)
        reference = figures(runs, seconds, group="chains", arm="reference", shots=shots)
        named[f"ours_over_reference_m{shots}"] = paired(reference, ours)
        for arm, title in (("ours", "prefix_hits_over_attainable"), ("reference", "reference_prefix_hits")):
            name = title if (arm, shots) == ("ours", 5) else f"{title}_m{shots}"
            named[name] = list(figures(runs, prefix_hits, group="chains", arm=arm, shots=shots).values())
    return named


def _chaos(runs: Sequence[Run]) -> dict[str, list[float]]:
    killed = figures(runs, documents_per_second, group="chaos", arm="killed")
    undisturbed = figures(runs, documents_per_second, group="chaos", arm="undisturbed")
    goodput = paired(killed, undisturbed)
    start = figures(runs, lambda run: float(run["start_seconds"]), group="chaos", arm="killed")
    lost = figures(runs, lambda run: float(run["lost"]), group="chaos", arm="killed")
    doubled = figures(runs, lambda run: float(run["doubled"]), group="chaos", arm="killed")
    kills = figures(runs, lambda run: float(run["kills"]), group="chaos", arm="killed")
    lives = figures(
        runs, lambda run: float(run["seconds"]) / max(1.0, float(run["kills"])), group="chaos", arm="killed"
    )
    # What a kill costs is a stretch of work, not a share of it: over ten minutes it weighs less.
    rare = [
        (1 - (1 - good) * lives[n] / TEN_MINUTES) * TEN_MINUTES / (TEN_MINUTES + start[n])
        for n, good in zip(sorted(killed.keys() & undisturbed.keys()), goodput, strict=True)
    ]
    return {
        "goodput_under_kills": goodput,
        "wall_clock_at_a_kill_in_10_minutes": rare,
        "kills": list(kills.values()),
        "lost_documents": list(lost.values()),
        "doubled_documents": list(doubled.values()),
    }


def _memory(runs: Sequence[Run]) -> dict[str, list[float]]:
    named = {}
    for arm in ("mined", "vllm"):
        peaks = {
            run["documents"]: float(run["peak_mb"]) for run in runs if run["group"] == "memory" and run["arm"] == arm
        }
        if len(peaks) > 1:
            named[f"memory_{arm}_many_over_few"] = [peaks[max(peaks)] / peaks[min(peaks)]]
    return named
