"""The report of a run: ``report.json``, ``report.html``, ``losses.csv`` and a manifest of kind ``report``.

``report.json`` and ``losses.csv`` are functions of the stages' manifests and stand in the manifest. The page also shows
measured throughput, which differs from run to run, so it and ``throughput.csv`` lie beside the manifest, in no digest.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from instructpt.api.runspec import RunSpec, StageResult
from instructpt.corpus.manifest import FileEntry, Manifest, publish_manifest
from instructpt.errors import ConfigError
from instructpt.evaluation.collect import Found, FoundStage, collect
from instructpt.evaluation.metrics import MAJORITY, UNTRAINED
from instructpt.evaluation.page import render_page
from instructpt.evaluation.report_data import build_report
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext

REPORT = "report.json"
PAGE = "report.html"
LOSSES_CSV = "losses.csv"
THROUGHPUT_CSV = "throughput.csv"
_MAX_HEADLINE = 24


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Write the report; a stage without output is named in it and passed over. Idempotent.

    Raises:
        ConfigError: The section ``report`` is missing, or a stage was made again since the plan.
    """
    section = spec.report
    if section is None:
        raise ConfigError("this worker needs the section report", field="report", value=None)
    found = collect(section, ctx)
    report = build_report(found, owner=spec.owner_name, baseline=section.baseline, code_version=spec.code_version)
    figures, notes = draw_figures(report, found)
    files = {
        REPORT: orjson.dumps(report, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n",
        LOSSES_CSV: to_csv(found, ("loss", "learning_rate", "grad_norm", "tokens", "loss_tokens"), losses=True),
    }
    store = open_store(spec.output.uri, access=spec.output)
    for name, data in files.items():
        store.put(name, data)
    store.put(THROUGHPUT_CSV, to_csv(found, ("tokens_per_second",), losses=False))
    store.put(PAGE, render_page(report, figures, notes=notes).encode("utf-8", "replace"))
    manifest = Manifest(
        kind="report",
        code_version=spec.code_version,
        inputs={s.stage.step: s.manifest.digest for s in found.stages},
        settings={"baseline": section.baseline},
        counts={"stages": len(found.stages), "absent": len(found.absent)},
        files=tuple(
            FileEntry(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in sorted(files.items())
        ),
        extra={"headline": report["verdict"]["headline"], "undigested": [PAGE, THROUGHPUT_CSV]},
    )
    digest = publish_manifest(store, manifest)
    return StageResult(
        uri=spec.output.uri, digest=digest, counts=dict(manifest.counts), scores=_headline_scores(report)
    )


def draw_figures(report: Mapping[str, Any], found: Found) -> tuple[dict[str, str], list[str]]:
    """Inline SVG by name, and why something is not drawn. Without matplotlib the report has no figures and says so."""
    try:
        from instructpt.evaluation import plots
    except ImportError:
        return {}, ["Figures need matplotlib: pip install 'instructpt[evaluation]'."]
    colours = {name: index for index, name in enumerate(report["arms"])}
    figures: dict[str, str] = {}
    notes: list[str] = []
    labels = {id(s): _label(s, found) for s in found.stages if s.stage.kind == "train" and s.stage.arm}
    by_label = {labels[id(s)]: colours[str(s.stage.arm)] for s in found.stages if id(s) in labels}
    losses = {labels[id(s)]: s.losses for s in found.stages if id(s) in labels and s.losses}
    throughput = {labels[id(s)]: s.throughput for s in found.stages if id(s) in labels and s.throughput}
    if losses:
        figures["loss"] = plots.loss_curves(losses, by_label)
    elif labels:
        notes.append("No training losses were found.")
    if throughput:
        figures["throughput"] = plots.throughput_curves(throughput, by_label)
    histogram = (report["synthesis"].get("quality") or {}).get("pairs_per_document")
    if histogram:
        figures["pairs"] = plots.pairs_histogram(histogram)
    models = [*report["arms"], UNTRAINED, MAJORITY]
    for name, metric in report["metrics"].items():
        if metric["values"]:
            figures[f"metric-{name}"] = plots.metric_bars(name, metric, models, colours)
    return figures, notes


def to_csv(found: Found, columns: Sequence[str], *, losses: bool) -> bytes:
    """Rows of all trained models: step, arm, seed, training step and the columns; absent values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "arm", "seed", "step", *columns])
    for stage in found.stages:
        for row in stage.losses if losses else stage.throughput:
            seed = "" if stage.stage.seed is None else stage.stage.seed
            writer.writerow(
                [stage.stage.step, stage.stage.arm or "", seed, row.get("step", ""), *(row.get(c, "") for c in columns)]
            )
    return out.getvalue().encode()


def _label(stage: FoundStage, found: Found) -> str:
    seeds = {s.stage.seed for s in found.stages if s.stage.kind == "train" and s.stage.arm == stage.stage.arm}
    arm = str(stage.stage.arm)
    return f"{arm}, seed {stage.stage.seed}" if len(seeds) > 1 else arm


def _headline_scores(report: Mapping[str, Any]) -> dict[str, float]:
    scores = {
        f"{name}/{task}": entry["value"]
        for name, arm in report["arms"].items()
        for task, entry in arm["metrics"].items()
    }
    return dict(list(scores.items())[:_MAX_HEADLINE])
