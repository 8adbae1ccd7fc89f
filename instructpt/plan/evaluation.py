"""EvaluationJob -> one worker over models x tasks."""

from __future__ import annotations

from instructpt.api.checks import check_gate, check_tasks
from instructpt.api.runspec import EvaluatedModel, EvaluateRun, ResolvedInput
from instructpt.api.v1alpha1.evaluationjob import EvaluationJobSpec, EvaluationSettings
from instructpt.plan.builder import PlanBuilder


def plan_evaluation(
    builder: PlanBuilder, spec: EvaluationJobSpec, *, waits_for: tuple[str, ...] = (), step: str = "evaluation"
) -> ResolvedInput | None:
    """The measurement and its finishing task."""
    check_tasks(spec.tasks)
    check_gate(spec, spec.baseline)
    places = [builder.resolve(m, f"spec.models[{i}]") for i, m in enumerate(spec.models)]
    corpus = builder.resolve(spec.corpus, "spec.corpus")
    section = None
    if corpus is not None and all(p is not None for p in places):
        section = EvaluateRun(
            models=tuple(
                EvaluatedModel(name=m.name, seed=m.seed, **dict(p))
                for m, p in zip(spec.models, places, strict=True)
                if p is not None
            ),
            baseline=spec.baseline, corpus=corpus, split=spec.split,
            settings=EvaluationSettings(**{name: getattr(spec, name) for name in EvaluationSettings.model_fields}),
        )  # fmt: skip
    return builder.add(
        step, "evaluate", output=spec.storage, section=section, waits_for=waits_for, resources=spec.resources
    )
