"""One entry for all kinds."""

from __future__ import annotations

from collections.abc import Mapping

from instructpt.api.runspec import ResolvedInput
from instructpt.api.v1alpha1 import Corpus, EvaluationJob, InstructionPretraining, SynthesisJob, TrainingJob
from instructpt.errors import ConfigError
from instructpt.plan.builder import PlanBuilder, RefKey
from instructpt.plan.corpus import plan_corpus
from instructpt.plan.evaluation import plan_evaluation
from instructpt.plan.model import Plan, Results
from instructpt.plan.pipeline import plan_pipeline
from instructpt.plan.synthesis import plan_synthesis
from instructpt.plan.training import plan_training

AnyResource = Corpus | SynthesisJob | TrainingJob | EvaluationJob | InstructionPretraining


def plan_resource(
    resource: AnyResource,
    results: Results,
    *,
    code_version: str,
    sample: int | None = None,
    refs: Mapping[RefKey, ResolvedInput | None] | None = None,
) -> Plan:
    """The stages of an object, given what is already done.

    Args:
        resource: Any of the five kinds.
        results: Results of finished stages by key; stages found there carry their result.
        code_version: Version of the code that will run.
        refs: Outputs of objects outside the plan that the object refers to; ``None`` where there is none yet.
        sample: Synthesize pairs for the first so many documents only, and plan nothing after the synthesis.

    Raises:
        ConfigError: The spec cannot be carried out, naming field, value and fix.
        PlanError: Its numbers do not add up.
    """
    if sample is not None and not isinstance(resource, SynthesisJob | InstructionPretraining):
        raise ConfigError("makes no pairs to sample", field="kind", value=resource.kind, fix="leave out --sample")
    builder = PlanBuilder(
        owner=(resource.kind, resource.metadata.name), results=results, code_version=code_version, refs=dict(refs or {})
    )
    match resource:
        case Corpus(spec=spec):
            plan_corpus(builder, spec)
        case SynthesisJob(spec=spec):
            plan_synthesis(builder, spec if sample is None else spec.model_copy(update={"max_documents": sample}))
        case TrainingJob(spec=spec):
            plan_training(builder, spec)
        case EvaluationJob(spec=spec):
            plan_evaluation(builder, spec)
        case InstructionPretraining():
            plan_pipeline(builder, resource, sample=sample)
    return Plan(kind=resource.kind, name=resource.metadata.name, stages=tuple(builder.stages))
