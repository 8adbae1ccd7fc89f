"""SynthesisJob -> workers that lease micro-shards."""

from __future__ import annotations

from instructpt.api.runspec import ResolvedInput, SynthesizeRun
from instructpt.api.v1alpha1.synthesisjob import SynthesisJobSpec, SynthesisSettings
from instructpt.plan.builder import PlanBuilder, foreign_ref, resolve


def plan_synthesis(
    builder: PlanBuilder,
    spec: SynthesisJobSpec,
    *,
    corpus: ResolvedInput | None = None,
    model: ResolvedInput | None = None,
    waits_for: tuple[str, ...] = (),
    step: str = "synthesis",
) -> ResolvedInput | None:
    """Workers and their finishing task.

    Args:
        builder: Collects the stage.
        spec: The job.
        corpus: The corpus, where the caller has resolved it; otherwise ``spec.input``.
        model: The synthesizer, likewise; otherwise ``spec.synthesizer.model``.
        waits_for: Steps of the caller that corpus and model come from; while one is missing, the stage waits.
        step: Name of the step.
    """
    ready = True
    if corpus is None:
        ready, corpus = (False, None) if waits_for else (True, resolve(spec.input, "spec.input"))
    if model is None and spec.strategy != "mined":
        model = _own_model(spec)
        if model is None and not waits_for:
            name = spec.synthesizer.ref.name if spec.synthesizer and spec.synthesizer.ref else ""
            raise foreign_ref("spec.synthesizer.ref", name, fix="set synthesizer.model to that job's output")
        ready = ready and model is not None
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


def _own_model(spec: SynthesisJobSpec) -> ResolvedInput | None:
    """The model named in the spec; ``None`` for a ref, which the caller resolves."""
    if spec.synthesizer is None or spec.synthesizer.model is None:
        return None
    return ResolvedInput(uri=spec.synthesizer.model)
