"""The evaluation worker: models x tasks, each committed as an object of its own.

A kill loses at most one (model, task): a rerun skips what is committed. Results are functions of the inputs and the
spec alone, so writing one twice is harmless. On a GPU equal bytes are not promised.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from instructpt.api.checks import check_gate, check_tasks
from instructpt.api.runspec import EvaluatedModel, EvaluateRun, RunSpec, StageResult
from instructpt.corpus.document import Document
from instructpt.corpus.manifest import MANIFEST, digest_of, load_manifest
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.evaluation.evaluation_set import EvaluationSet, build_evaluation_set, describe
from instructpt.evaluation.metrics import CHANCE, MAJORITY, UNTRAINED
from instructpt.evaluation.results import result_key
from instructpt.storage import Store, open_store
from instructpt.telemetry.context import WorkerContext

if TYPE_CHECKING:
    from instructpt.evaluation.language_model import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One model on one task.

    Attributes:
        model: Index into the models of the spec; ``None`` is the untrained one.
        name: Its name.
        seed: Its training seed.
        task: The task.
        key: Where the result is committed.
    """

    model: int | None
    name: str
    seed: int | None
    task: str
    key: str


def section_of(spec: RunSpec) -> EvaluateRun:
    """The section ``evaluate``, checked.

    Raises:
        ConfigError: A task or the gate's metric is unknown, or two models share a name and seed.
    """
    section = spec.evaluate
    if section is None:
        raise ConfigError("this worker needs the section evaluate", field="evaluate", value=None)
    check_tasks(section.settings.tasks)
    check_gate(section.settings, section.baseline)
    seen: set[tuple[str, int | None]] = set()
    for index, model in enumerate(section.models):
        if model.name in (UNTRAINED, MAJORITY, CHANCE):
            raise ConfigError(
                "is the name of a row that every table has",
                field=f"spec.models[{index}].name",
                value=model.name,
                fix="give the model another name",
            )
        if (model.name, model.seed) in seen:
            raise ConfigError(
                "stands there twice with the same seed",
                field=f"spec.models[{index}].name",
                value=model.name,
                fix="give each a name or a seed of its own",
            )
        seen.add((model.name, model.seed))
    return section


def plan_units(spec: RunSpec) -> list[Unit]:
    """All results that there will be, models first by model and then by task, the untrained one last."""
    section = section_of(spec)
    who: list[tuple[int | None, str, int | None]] = [(i, m.name, m.seed) for i, m in enumerate(section.models)]
    key = spec.work_key()
    return [
        Unit(model=index, name=name, seed=seed, task=task, key=result_key(key, name, seed, task))
        for index, name, seed in [*who, (None, UNTRAINED, None)]
        for task in section.settings.tasks
    ]


def set_key(spec: RunSpec) -> str:
    """Where the description of the evaluation set lies below the output."""
    return f"work/{spec.work_key()}/set.json"


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Measure every model on every task that is not committed yet; stops between two when ``ctx.stop`` is set.

    Raises:
        ConfigError: The spec, a model or the corpus cannot be used.
        EvaluationError: There is nothing to measure on.
        EnvironmentNotReadyError: torch or transformers is not installed.
    """
    section = section_of(spec)
    output = open_store(spec.output.uri, access=spec.output)
    units = plan_units(spec)
    committed = {info.key for info in output.list(f"work/{spec.work_key()}/")}
    done = sum(unit.key in committed for unit in units)
    ctx.progress.update(done=done, total=len(units), unit="tasks")
    todo = [unit for unit in units[ctx.replica :: ctx.replicas] if unit.key not in committed]
    if not todo and set_key(spec) in committed:
        return
    _need_torch()
    folders = _fetch(section, ctx)
    corpus, corpus_digest = _corpus(section)
    on = build_evaluation_set(corpus, section.settings, _miner(), context_tokens=_context(folders))
    output.put(set_key(spec), describe(on, inputs=_inputs(section, folders, corpus_digest)))
    ctx.progress.update(counts=on.counts)
    for index, group in _by_model(todo):
        if ctx.stop.is_set():
            return
        done = _measure_model(folders[index or 0], index is None, group, on, section, output, ctx, done)


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Scores, gains, gate and manifest from the committed results; writes no manifest while some are missing."""
    from instructpt.evaluation.finish import finish

    return finish(spec, section_of(spec), plan_units(spec), set_key(spec))


def _measure_model(
    folder: Path, untrained: bool, group: list[Unit], on: EvaluationSet, section: EvaluateRun, output: Store,
    ctx: WorkerContext, done: int,
) -> int:  # fmt: skip
    """Load one model, measure its tasks one by one, let it go. Returns the units done so far."""
    from instructpt.evaluation.language_model import load_model, load_untrained
    from instructpt.evaluation.measure import measure

    lm: LanguageModel = load_untrained(folder) if untrained else load_model(folder)
    for unit in group:
        if ctx.stop.is_set():
            break
        result = measure(lm, unit.task, on, section.settings, model=unit.name, seed=unit.seed)
        output.put(unit.key, result.to_bytes())
        done += 1
        ctx.progress.update(done=done, counts={f"{unit.task}_{k}": v for k, v in result.counts.items()})
    del lm
    gc.collect()
    return done


def _by_model(units: Iterable[Unit]) -> Iterator[tuple[int | None, list[Unit]]]:
    groups: dict[int | None, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.model, []).append(unit)
    return iter(groups.items())


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"evaluation needs torch and transformers: {error}", fix="pip install 'instructpt[training]'"
        ) from error


def _fetch(section: EvaluateRun, ctx: WorkerContext) -> list[Path]:
    from instructpt.storage.models import fetch_model

    return [fetch_model(model, ctx.scratch / "models") for model in section.models]


def _context(folders: list[Path]) -> int:
    """The shortest context of all models: each is measured with the same windows."""
    from instructpt.evaluation.language_model import context_length

    return min(context_length(folder, _settings(folder)) for folder in folders)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    settings: dict[str, Any] = orjson.loads(path.read_bytes()).get("settings", {})
    return settings


def _corpus(section: EvaluateRun) -> tuple[Iterator[Document], str]:
    """The held-out documents, streamed, and the digest of the corpus's manifest."""
    from instructpt.corpus.shards import iter_corpus

    store = open_store(section.corpus.uri, access=section.corpus)
    load_manifest(store, digest=section.corpus.digest)
    return iter_corpus(section.corpus, split=section.split), digest_of(store.get(MANIFEST))


def _miner() -> Any:
    from instructpt.synthesis.mined import mine

    return mine


def _inputs(section: EvaluateRun, folders: list[Path], corpus_digest: str) -> dict[str, str]:
    from instructpt.storage.models import model_digest

    inputs = {"corpus": corpus_digest}
    for model, folder in zip(section.models, folders, strict=True):
        inputs[input_name(model)] = model.digest or model_digest(folder)
    return inputs


def input_name(model: EvaluatedModel) -> str:
    """Name of a model in the lineage."""
    return f"model/{model.name}" if model.seed is None else f"model/{model.name}/{model.seed}"
