"""Verbs that read what runs produced: show, report, lineage."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from instructpt.api.runspec import ResolvedInput
from instructpt.cli.console import Output, command, emit, out, talk
from instructpt.cli.lifecycle import NameArgument, OutputOption, RunsOption, find_folder, judge_folder
from instructpt.errors import ConfigError, NotFoundError
from instructpt.local.command import DEFAULT_RUNS
from instructpt.plan import Plan, Stage


class What(StrEnum):
    """What ``show`` can show."""

    AUGMENTED = "augmented"
    DOCUMENTS = "documents"
    DEAD_LETTERS = "dead-letters"
    TEMPLATES = "templates"


def report(name: NameArgument, runs: RunsOption = DEFAULT_RUNS, output: OutputOption = Output.TABLE) -> None:
    """Print the comparison of the arms, and what it means."""
    print_report(find_folder(name, runs).path, output)


def print_report(folder: Path, output: Output) -> None:
    """The report of a run folder, as a table or as data."""
    path = folder / "report.json"
    if not path.exists():
        raise ConfigError(
            f"{folder} has no report yet",
            fix=f"let the run finish; how far it is: {command('status', folder.name, runs=folder.parent)}",
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    if output is not Output.TABLE:
        emit(data, output)
        return
    from instructpt.evaluation.table import render_table

    out.print(render_table(data))
    talk.print(f"Report: {folder / 'report.html'} and {path}", markup=False)


def show(
    what: Annotated[What, typer.Argument(help="augmented, documents, dead-letters or templates.")],
    name: Annotated[str | None, typer.Argument(help="Name of the run; empty takes the newest.")] = None,
    runs: RunsOption = DEFAULT_RUNS,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many.")] = 1,
    step: Annotated[str | None, typer.Option(help="Step that made them, such as tuning-tasks.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show augmented texts with their pairs marked, raw documents, dead letters, or how often each template is used."""
    folder = find_folder(name or _newest(runs), runs)
    _, plan, _ = judge_folder(folder)
    stage = _stage(plan, "inspect" if what is What.DOCUMENTS else "synthesize", what, step)
    if stage.result is None:
        look = command("status", folder.path.name, runs=folder.path.parent)
        raise ConfigError(f"step {stage.step} of {folder.path.name} has left no {what} yet", fix=f"see {look}")
    if what is What.TEMPLATES:
        _show_templates(stage, output)
        return
    rows = _documents(stage, number) if what is What.DOCUMENTS else _chains(stage, number, what)
    if output is not Output.TABLE:
        emit(rows, output)
        return
    for row in rows:
        _print_row(row)
    if not rows:
        talk.print(f"There are no {what}.")


def _stage(plan: Plan, kind: str, what: What, step: str | None) -> Stage:
    """The step that was asked for, else the synthesis: pairs that only tune a synthesizer are never shown instead."""
    stages = {s.step: s for s in plan.stages if s.kind == kind}
    if not stages:
        raise ConfigError(f"{plan.kind} {plan.name} makes no {what}", fix="name a run that does")
    wanted = step or ("synthesis" if "synthesis" in stages else next(reversed(stages)))
    if wanted not in stages:
        raise ConfigError(f"makes no {what}", field="--step", value=wanted, fix=f"use one of {', '.join(stages)}")
    return stages[wanted]


def _newest(runs: Path) -> str:
    found = sorted(runs.glob("*/spec.yaml"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ConfigError(f"there is no run below {runs}/", fix=f"{command('run', 'FILE', runs=runs)} starts one")
    return found[-1].parent.name


def _input(stage: Stage) -> ResolvedInput:
    assert stage.result is not None
    assert stage.output is not None
    place = stage.output
    return ResolvedInput(
        uri=stage.result.uri, digest=stage.result.digest, endpoint=place.endpoint, region=place.region,
        secret_ref=place.secret_ref,
    )  # fmt: skip


def _documents(stage: Stage, number: int) -> list[dict[str, Any]]:
    from itertools import islice

    from instructpt.corpus.shards import iter_corpus

    return [{"id": d.id, "text": d.text} for d in islice(iter_corpus(_input(stage)), number)]


def _chains(stage: Stage, number: int, what: What) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from instructpt.corpus.shards import iter_augmented

    rows = []
    for chain in iter_augmented(_input(stage)):
        dead = any(s.verdict == "dead-letter" for s in chain.shots)
        paired = any(s.pairs for s in chain.shots)
        if dead if what is What.DEAD_LETTERS else paired:
            rows.append(asdict(chain))
        if len(rows) == number:
            break
    return rows


def _show_templates(stage: Stage, output: Output) -> None:
    """How often each shape, pattern and style stands in the texts with pairs."""
    from dataclasses import asdict

    from instructpt.corpus.shards import iter_augmented
    from instructpt.synthesis.templates import usage

    found = usage.count(row.templates for row in iter_augmented(_input(stage)) if row.templates)
    categories = usage.by_category(found, usage.seen(found))
    if output is not Output.TABLE:
        shapes = {shape: found.counts.get(shape, 0) for shape in usage.SHAPES}
        counts = dict(sorted(found.counts.items()))
        listed = [asdict(category) for category in categories]
        emit({"texts": found.texts, "shapes": shapes, "categories": listed, "counts": counts}, output)
        return
    out.print(f"{found.texts} texts with pairs")
    for shape in usage.SHAPES:
        out.print(f"  {found.share(shape):7.2%}  {shape}")
    for category in categories:
        out.print(
            f"  {category.number:4} {category.name}, the most used in {category.most_share:.2%} ({category.most})"
        )


def _print_row(row: dict[str, Any]) -> None:
    if "shots" not in row:
        out.print(f"[bold]{escape(row['id'])}[/]\n{escape(row['text'])}\n")
        return
    out.rule(f"chain {row['id']}")
    for shot in row["shots"]:
        reason = f" ({shot['reason']})" if shot["reason"] else ""
        out.print(f"[bold]document {escape(shot['document'])}[/] {shot['verdict']}{escape(reason)}")
        out.print(escape(shot["text"]))
        for pair in shot["pairs"]:
            out.print(f"  [green]Q[/] {escape(pair['question'])}\n  [yellow]A[/] {escape(pair['answer'])}")
    out.print("\n[bold]as the model sees it[/]")
    out.print(mark_pairs(row))


def mark_pairs(row: dict[str, Any]) -> str:
    """The chain's text with its questions green and its answers yellow, as rich markup."""
    text = row["text"]
    spans: list[tuple[int, int, str]] = []
    position = 0
    for shot in row["shots"]:
        for pair in shot["pairs"]:
            for part, colour in ((pair["question"].split("\n")[0], "green"), (pair["answer"], "yellow")):
                start = text.find(part, position)
                if start >= 0 and part:
                    spans.append((start, start + len(part), colour))
                    position = start + len(part)
    marked, last = "", 0
    for start, end, colour in spans:
        marked += escape(text[last:start]) + f"[{colour}]" + escape(text[start:end]) + "[/]"
        last = end
    return marked + escape(text[last:])


def print_pair_quality(stage: Stage, folder: Path, output: Output) -> None:
    """The pair-quality report of a finished synthesis."""
    from instructpt.corpus.shards import iter_augmented
    from instructpt.evaluation.pair_quality import measure, render

    quality = measure(iter_augmented(_input(stage)))
    if output is not Output.TABLE:
        emit(quality, output)
        return
    out.print(render(quality))
    look = command("show", "augmented", folder.name, "-n", "3", runs=folder.parent)
    talk.print(f"Look at some: {look}", markup=False)


def lineage(
    name: Annotated[str, typer.Argument(help="Run name, or URI of a prefix with a manifest.")],
    runs: RunsOption = DEFAULT_RUNS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what each produced set was made from, back to the raw corpus, by content hash."""
    from instructpt.corpus.manifest import load_manifest
    from instructpt.storage import open_store

    try:
        folder = find_folder(name, runs)
    except ConfigError:
        manifest = load_manifest(open_store(name))
        rows: list[dict[str, Any]] = [
            {"uri": name, "kind": manifest.kind, "digest": manifest.digest, "inputs": dict(manifest.inputs)}
        ]
    else:
        _, plan, _ = judge_folder(folder)
        rows = []
        for stage in plan.stages:
            if stage.result is None or stage.output is None:
                continue
            try:
                manifest = load_manifest(open_store(stage.result.uri, access=stage.output))
            except NotFoundError:
                continue
            rows.append(
                {"step": stage.step, "uri": stage.result.uri, "kind": manifest.kind, "digest": manifest.digest,
                 "inputs": dict(manifest.inputs)}
            )  # fmt: skip
    if output is not Output.TABLE:
        emit(rows, output)
        return
    steps = {row["digest"]: row.get("step", row["uri"]) for row in rows}
    for row in rows:
        out.print(
            f"[bold]{row.get('step', row['uri'])}[/] {row['kind']} {row['digest'][:19]} {escape(str(row['uri']))}"
        )
        for input_name, digest in row["inputs"].items():
            origin = steps.get(digest)
            out.print(f"  <- {input_name} {digest[:19]}" + (f" ({origin})" if origin else ""), markup=False)
