"""What the stages left -> the content of ``report.json``. Pure; no times, so that equal runs give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructpt.api.presets import num_parameters
from instructpt.corpus.augmented import ChainRow
from instructpt.evaluation.collect import Found, FoundStage
from instructpt.evaluation.metrics import CHANCE, MAJORITY, UNTRAINED
from instructpt.evaluation.verdict import give_verdict

FORMAT_VERSION = 1
TUNING_STEP = "tuning-tasks"


def build_report(found: Found, *, owner: str, baseline: str, code_version: str) -> dict[str, Any]:
    """The report as JSON-ready data.

    Args:
        found: What the stages left.
        owner: Name of the object that the report is about.
        baseline: Arm that gains are counted from.
        code_version: Version of the code.

    Returns:
        ``arms``, ``untrained``, ``majority``, ``metrics``, ``gate``, ``corpus``, ``synthesis``, ``synthesizer``,
        ``questions``, ``verdict``, ``lineage``, ``absent``, ``versions``.
    """
    scored = next((s for s in found.stages if s.scores is not None), None)
    scores: Mapping[str, Any] = scored.scores if scored is not None and scored.scores is not None else {}
    metrics = dict(scores.get("metrics", {}))
    # An evaluation on its own has models but no arms.
    names = list(dict.fromkeys(s.stage.arm for s in found.stages if s.stage.kind == "train" and s.stage.arm))
    names += [m["name"] for m in scores.get("models", ()) if m["name"] not in names]
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": owner,
        "baseline": scores.get("baseline") or baseline,
        "arms": {name: _arm(name, found.stages, metrics) for name in dict.fromkeys(names)},
        **{name: {"metrics": _values(name, metrics)} for name in (UNTRAINED, MAJORITY, CHANCE)},
        "metrics": metrics,
        "gate": scores.get("gate", {"verdict": "None", "reason": "nothing was measured"}),
        "evaluation": {
            name: scores.get(name)
            for name in (
                "counts", "questions_by_kind", "context_tokens", "excerpt_characters", "shots", "bootstrap",
                "majority_answers",
            )
        } if scores else {},
        "questions": [dict(p) for p in scored.predictions] if scored else [],
        "corpus": _corpus(found.stages),
        "synthesis": _synthesis(found.stages, tuning=False),
        "synthesizer": _synthesizer(found.stages),
        "lineage": {
            s.stage.step: {"kind": s.manifest.kind, "digest": s.manifest.digest, "inputs": dict(s.manifest.inputs)}
            for s in found.stages
        },
        "absent": list(found.absent),
        "versions": {"instructpt": code_version, "report_format": FORMAT_VERSION},
    }  # fmt: skip
    report["verdict"] = give_verdict(report)
    return report


def _arm(name: str, stages: Sequence[FoundStage], metrics: Mapping[str, Any]) -> dict[str, Any]:
    runs = [_training(s) for s in stages if s.stage.kind == "train" and s.stage.arm == name]
    first = runs[0] if runs else {}
    keys = ("train_tokens", "train_steps", "unique_documents", "repeats", "parameters")
    return {**{key: first.get(key) for key in keys}, "runs": runs, "metrics": _values(name, metrics)}


def _values(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {task: m["values"][name] for task, m in metrics.items() if name in m["values"]}


def _training(found: FoundStage) -> dict[str, Any]:
    """Facts of one trained model, from its manifest and its last lines of metrics."""
    counts = found.manifest.counts
    losses = [row["loss"] for row in found.losses if row.get("loss") is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    # The mixture receipt: what was taken from each source.
    sources = [dict(source) for source in found.manifest.extra.get("receipt", ())]
    return {
        "seed": found.stage.seed,
        "train_tokens": counts.get("tokens"),
        "train_steps": counts.get("steps"),
        "unique_documents": counts.get("unique_documents"),
        "repeats": max((source["passes"] for source in sources), default=None),
        "sources": sources,
        "parameters": _parameters(found.config),
        "final_loss": round(sum(tail) / len(tail), 4) if tail else None,
        "digest": found.manifest.digest,
    }


def _parameters(config: Mapping[str, Any] | None) -> int | None:
    if config is None or "vocab_size" not in config:
        return None
    try:
        return num_parameters(config, int(config["vocab_size"]))
    except KeyError:
        return None  # not of Llama's shape, so its size is not known here


def _corpus(stages: Sequence[FoundStage]) -> dict[str, Any]:
    stage = next((s for s in stages if s.stage.kind == "inspect"), None)
    if stage is None:
        return {}
    counts = {**stage.manifest.counts, "shards": len(stage.manifest.shards)}
    return {"counts": counts, "split": stage.manifest.settings.get("split")}


def _synthesis(stages: Sequence[FoundStage], *, tuning: bool) -> dict[str, Any]:
    """The augmented corpus that the arms train on, or the tasks that the synthesizer was tuned on."""
    stage = next((s for s in stages if s.stage.kind == "synthesize" and (s.stage.step == TUNING_STEP) == tuning), None)
    if stage is None:
        return {}
    return {
        "step": stage.stage.step,
        "counts": dict(stage.manifest.counts),
        "quality": dict(stage.quality or {}),
        "example": None if stage.example is None else _example(stage.example),
    }


def _synthesizer(stages: Sequence[FoundStage]) -> dict[str, Any]:
    trained = next((s for s in stages if s.stage.kind == "train" and s.stage.arm is None), None)
    if trained is None:
        return {}
    tasks = _synthesis(stages, tuning=True)
    return {**_training(trained), "tasks": {k: v for k, v in tasks.items() if k != "example"}}


def _example(row: ChainRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": row.text,
        "templates": list(row.templates),
        "shots": [
            {
                "document": shot.document,
                "verdict": shot.verdict,
                "pairs": [{"question": p.question, "answer": p.answer, "kind": p.kind} for p in shot.pairs],
            }
            for shot in row.shots
        ],
    }
