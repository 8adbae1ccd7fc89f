"""SynthesisJob -> workers that lease micro-shards."""

from __future__ import annotations

from instructpt.api.runspec import ResolvedInput, SynthesizeRun
from instructpt.api.v1alpha1.synthesisjob import SynthesisJobSpec, SynthesisSettings
from instructpt.plan.builder import PlanBuilder


def plan_synthesis(
    builder: PlanBuilder, spec: SynthesisJobSpec, *, waits_for: tuple[str, ...] = (), step: str = "synthesis"
) -> ResolvedInput | None:
    """Workers and their finishing task.

    Args:
        builder: Collects the stage.
        spec: The job.
        waits_for: Steps that corpus and model come from.
        step: Name of the step.
    """
    corpus = builder.resolve(spec.input, "spec.input")
    model = _model(builder, spec)
    ready = model is not None or spec.engine.name == "mined"
    section = None
    if ready and corpus is not None:
        settings = SynthesisSettings(**{name: getattr(spec, name) for name in SynthesisSettings.model_fields})
        synthesizer = spec.synthesizer
        section = SynthesizeRun(
            corpus=corpus, split=spec.split, max_documents=spec.max_documents, strategy=spec.strategy, model=model,
            profile=synthesizer.profile if synthesizer else "instruction-synthesizer",
            compat=synthesizer.compat if synthesizer else "fixed", settings=settings,
        )  # fmt: skip
    return builder.add(
        step, "synthesize", output=spec.storage, section=section, waits_for=waits_for, parallelism=spec.parallelism,
        resources=spec.engine.resources,
    )  # fmt: skip


def _model(builder: PlanBuilder, spec: SynthesisJobSpec) -> ResolvedInput | None:
    """The synthesizer; ``None`` for rules, and while the job that trains it has no export."""
    if spec.engine.name == "mined" or spec.synthesizer is None:
        return None
    if spec.synthesizer.ref is not None:
        fix = "set synthesizer.model to that job's output"
        return builder.lookup(spec.synthesizer.ref, "spec.synthesizer", fix=fix)
    return None if spec.synthesizer.model is None else ResolvedInput(uri=spec.synthesizer.model)
