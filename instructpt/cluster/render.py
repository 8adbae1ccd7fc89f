"""Plans and tasks as Kubernetes objects. Pure and deterministic: the operator creates them, ``plan`` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import yaml

from instructpt.api.v1alpha1 import InstructionPretraining
from instructpt.api.version import VERSION
from instructpt.cluster.context import RUNSPEC_FILE, Owner, RenderContext
from instructpt.cluster.jobs import job
from instructpt.cluster.launchers import LAUNCHERS
from instructpt.cluster.meta import is_finalize, labels, owned
from instructpt.plan.model import Plan, Stage, Task
from instructpt.plan.naming import LABEL_TASK, TASK_FINALIZE, TASK_WORK, runspec_name
from instructpt.plan.pipeline import PlannedChild, children
from instructpt.plan.planner import AnyResource, plan_resource
from instructpt.plan.refs import refs_of


def render_runspec(task: Task, ctx: RenderContext) -> dict[str, Any]:
    """The immutable ConfigMap that holds the task's RunSpec; its name ends with the RunSpec's hash."""
    name = runspec_name(ctx.owner.name, task.name, task.runspec.hash)
    kind = TASK_FINALIZE if is_finalize(task) else TASK_WORK
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned(ctx.owner, name, {**labels(ctx.owner, task.runspec.step), LABEL_TASK: kind}),
        "immutable": True,
        "data": {RUNSPEC_FILE: task.runspec.to_json()},
    }


def render_task(stage: Stage, task: Task, attempt: int, ctx: RenderContext) -> dict[str, Any]:
    """The object that runs one attempt of a stage's work or of its finishing task."""
    if stage.kind == "train" and not is_finalize(task):
        return LAUNCHERS[ctx.launcher].build(stage, task, attempt, ctx)
    return job(stage, task, attempt, ctx)


def render_child(child: PlannedChild, ctx: RenderContext) -> dict[str, Any]:
    """A child object of a pipeline."""
    wire = child.object.to_wire()
    name = child.object.metadata.name
    return {
        "apiVersion": wire["apiVersion"],
        "kind": wire["kind"],
        "metadata": owned(ctx.owner, name, labels(ctx.owner, child.step)),
        "spec": wire["spec"],
    }


def render_stage(stage: Stage, ctx: RenderContext, *, attempt: int = 1) -> list[dict[str, Any]]:
    """What one attempt of a stage consists of; nothing while its inputs are not there."""
    tasks = [task for task in (stage.work, stage.finalize) if task is not None]
    return [obj for task in tasks for obj in (render_runspec(task, ctx), render_task(stage, task, attempt, ctx))]


def render_plan(resource: AnyResource, plan: Plan, ctx: RenderContext) -> list[dict[str, Any]]:
    """Everything that is known now, in the order in which it runs.

    The children of a pipeline are planned by themselves, as the operator does: their steps bear other names there.
    """
    if not isinstance(resource, InstructionPretraining):
        return [obj for stage in plan.stages for obj in render_stage(stage, ctx)]
    out: list[dict[str, Any]] = []
    for child in children(resource):
        rendered = render_child(child, ctx)
        out.append(rendered)
        inner = replace(ctx, owner=_owner(rendered), policy=child.object.spec)
        refs = dict.fromkeys(refs_of(child.object))
        planned = plan_resource(child.object, {}, code_version=_code_version(plan), refs=refs)
        out += [obj for stage in planned.stages for obj in render_stage(stage, inner)]
    own = (s for s in plan.stages if s.owner == (resource.kind, resource.metadata.name))
    return out + [obj for stage in own for obj in render_stage(stage, ctx)]


def to_yaml(objects: Iterable[dict[str, Any]]) -> str:
    """A YAML stream, one document an object; equal objects give equal bytes."""
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, explicit_start=True, allow_unicode=True, width=2**20)


class _Plain(yaml.SafeDumper):
    """Without anchors: each object is read by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time."""
        return True


def _owner(obj: dict[str, Any]) -> Owner:
    meta = obj["metadata"]
    return Owner(
        api_version=obj["apiVersion"], kind=obj["kind"], name=meta["name"], namespace=meta.get("namespace", "")
    )


def _code_version(plan: Plan) -> str:
    return next((s.runspec.code_version for s in plan.stages if s.runspec is not None), VERSION)
