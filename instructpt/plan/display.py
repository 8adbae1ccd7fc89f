"""Columns of ``kubectl get``: text for people, made from the fields of a status. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Wire = Mapping[str, Any]

_LIMIT = 256
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_LOWER_IS_BETTER = ("bits-per-byte", "answer-bits-per-byte")
_DECIMALS = {"qa-exact-match": 1}


def display(kind: str, status: Wire, spec: Wire | None = None) -> dict[str, str]:
    """What stands under ``status.display``: only what is known, so an empty column means "not yet".

    Args:
        kind: Kind of the object.
        status: The rest of its status, as it stands in YAML.
        spec: Its spec; without it the columns that repeat the spec stay empty, and so does the score.
    """
    columns = _COLUMNS[kind](status, spec or {})
    columns["eta"] = _eta(status)
    return {name: text[:_LIMIT] for name, text in columns.items() if text}


def quantity(value: float) -> str:
    """``15_234_567`` -> ``15.2M``; below a thousand the number itself."""
    if value < 1000:
        return f"{value:.0f}"
    for suffix in ("k", "M", "B", "T"):
        value /= 1000
        # 99.95 and more would round to four digits or to the next suffix.
        if value < 99.95:
            return f"{value:.1f}{suffix}"
        if value < 999.5:
            return f"{value:.0f}{suffix}"
    return f"{value:.0f}T"


def duration(seconds: int) -> str:
    """As kubectl shows an age: two units at most, the second only while it matters (``5h10m``, ``3d``)."""
    if seconds < 2 * _MINUTE:
        return f"{seconds}s"
    if seconds < 10 * _MINUTE:
        return _two(seconds, _MINUTE, "m", 1, "s")
    if seconds < 3 * _HOUR:
        return f"{seconds // _MINUTE}m"
    if seconds < 8 * _HOUR:
        return _two(seconds, _HOUR, "h", _MINUTE, "m")
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR}h"
    if seconds < 8 * _DAY:
        return _two(seconds, _DAY, "d", _HOUR, "h")
    return f"{seconds // _DAY}d"


def of_total(done: int, total: int, *, percent: bool = False) -> str:
    """``147/512``, with ``(28%)`` after it on request; a percentage never rounds up to what is not reached."""
    share = f" ({100 * done // total}%)" if percent and total else ""
    return f"{done}/{total}{share}"


def _two(seconds: int, unit: int, name: str, lesser: int, lesser_name: str) -> str:
    rest = seconds % unit // lesser
    return f"{seconds // unit}{name}{rest}{lesser_name}" if rest else f"{seconds // unit}{name}"


def _corpus(status: Wire, spec: Wire) -> dict[str, str]:
    return {"documents": _count(status, "documents"), "tokens": _count(status, "tokens"), "shards": _shards(status)}


def _synthesis(status: Wire, spec: Wire) -> dict[str, str]:
    synthesizer = spec.get("synthesizer") or {}
    return {
        "progress": _shard_progress(status),
        "pairs": _count(status, "pairs"),
        "throughput": _throughput(status),
        "model": _model(synthesizer, "model"),
    }


def _training(status: Wire, spec: Wire) -> dict[str, str]:
    loss = status.get("loss", (status.get("scores") or {}).get("final_loss"))
    mfu = (status.get("progress") or {}).get("mfu")
    return {
        "step": _step(status),
        "loss": "" if loss is None else f"{loss:.3f}",
        "throughput": _throughput(status),
        "mfu": "" if mfu is None else f"{100 * mfu:.1f}%",
    }


def _evaluation(status: Wire, spec: Wire) -> dict[str, str]:
    score, delta = _score(status.get("scores") or {}, spec)
    progress = status.get("progress") or {}
    done = of_total(progress["done"], progress["total"]) if progress.get("total") else ""
    return {"progress": done, "score": score, "delta": delta, "tasks": ",".join(spec.get("tasks") or ())}


def _pipeline(status: Wire, spec: Wire) -> dict[str, str]:
    return {
        "synthesis": status.get("synthesis") or "",
        "training": status.get("training") or "",
        "model": _model((spec.get("training") or {}).get("init") or {}, "from"),
        "arms": ",".join(arm["name"] for arm in spec.get("arms") or ()),
    }


_COLUMNS: Mapping[str, Callable[[Wire, Wire], dict[str, str]]] = {
    "Corpus": _corpus,
    "SynthesisJob": _synthesis,
    "TrainingJob": _training,
    "EvaluationJob": _evaluation,
    "InstructionPretraining": _pipeline,
}


def _count(status: Wire, name: str) -> str:
    value = (status.get("counts") or {}).get(name)
    return "" if value is None else quantity(value)


def _shards(status: Wire) -> str:
    total = (status.get("shards") or {}).get("total") or (status.get("counts") or {}).get("shards")
    return "" if total is None else str(total)


def _shard_progress(status: Wire) -> str:
    shards, progress = status.get("shards") or {}, status.get("progress") or {}
    if shards.get("total"):
        return of_total(shards.get("succeeded", 0), shards["total"], percent=True)
    if progress.get("total") and progress.get("unit") == "shards":
        return of_total(progress["done"], progress["total"], percent=True)
    made = (status.get("counts") or {}).get("shards")  # known from the manifest, once it is written
    return of_total(made, made, percent=True) if made else ""


def _step(status: Wire) -> str:
    progress = status.get("progress") or {}
    if status.get("steps"):
        return of_total(status.get("step") or 0, status["steps"])
    if progress.get("total") and progress.get("unit") == "steps":
        return of_total(progress["done"], progress["total"])
    made = (status.get("counts") or {}).get("steps")
    return of_total(made, made) if made else ""


def _throughput(status: Wire) -> str:
    rate = (status.get("progress") or {}).get("tokensPerSecond")
    return "" if rate is None else quantity(rate)


def _eta(status: Wire) -> str:
    progress = status.get("progress") or {}
    seconds = progress.get("etaSeconds")
    if progress.get("stale") and not status.get("completionTime"):
        return "Unknown"
    return "" if seconds is None or status.get("completionTime") else duration(int(seconds))


def _model(section: Wire, key: str) -> str:
    ref = section.get("ref")
    if section.get(key):
        return str(section[key])
    if ref:
        return f"{ref['kind']}/{ref['name']}"
    if section.get("tune"):
        return "tuned"
    return str(section.get("preset") or ("config" if section.get("config") else ""))


def _score(scores: Wire, spec: Wire) -> tuple[str, str]:
    """Score of the judged model on the metric that decides, and its gain over the baseline."""
    metric = (spec.get("gate") or {}).get("metric") or next(iter(spec.get("tasks") or ()), None)
    baseline = spec.get("baseline")
    name = _judged([m["name"] for m in spec.get("models") or ()], baseline)
    value = scores.get(f"{name}/{metric}")
    if metric is None or value is None:
        return "", ""
    decimals = _DECIMALS.get(metric, 3)
    other = scores.get(f"{baseline}/{metric}")
    if other is None or name == baseline:
        return f"{value:.{decimals}f}", ""
    gain = other - value if metric in _LOWER_IS_BETTER else value - other
    return f"{value:.{decimals}f}", f"{gain:+.{decimals}f}"


def _judged(names: Sequence[str], baseline: str | None) -> str | None:
    """The model that a gate judges: ``instruct``, else the first that is not the baseline."""
    others = [name for name in names if name != baseline]
    return "instruct" if "instruct" in others else next(iter(others or names), None)
