"""InstructionPretraining -> child objects, and their stages in order.

The same children are objects of their own on a cluster (with refs) and stages of one run on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from instructpt.api.base import Access, Input, ObjectMeta, ObjectRef
from instructpt.api.checks import check_gate, check_tasks
from instructpt.api.presets import architecture
from instructpt.api.runspec import ReportRun, ResolvedInput, StageOutput
from instructpt.api.v1alpha1 import Corpus, EvaluationJob, InstructionPretraining, SynthesisJob, TrainingJob
from instructpt.api.v1alpha1.corpus import CorpusSource, CorpusSpec
from instructpt.api.v1alpha1.evaluationjob import Candidate, EvaluationJobSpec, EvaluationSettings
from instructpt.api.v1alpha1.instructionpretraining import Arm, TuneSpec
from instructpt.api.v1alpha1.mixturesource import MixtureSource
from instructpt.api.v1alpha1.synthesisjob import Engine, SynthesisJobSpec, SynthesisSettings, Synthesizer
from instructpt.api.v1alpha1.trainingjob import (
    TokenizerSpec,
    TokenizerTrain,
    TrainingJobSpec,
    TrainingSettings,
    Validation,
)
from instructpt.errors import ConfigError
from instructpt.plan.builder import PlanBuilder
from instructpt.plan.corpus import plan_corpus
from instructpt.plan.evaluation import plan_evaluation
from instructpt.plan.naming import arm_step, below, child_name
from instructpt.plan.synthesis import plan_synthesis
from instructpt.plan.training import DEFAULT_TINY_VOCABULARY, plan_training

Child = Corpus | SynthesisJob | TrainingJob | EvaluationJob

STEP_CORPUS = "corpus"
STEP_TUNING_TASKS = "tuning-tasks"
STEP_SYNTHESIZER = "synthesizer"
STEP_SYNTHESIS = "synthesis"
STEP_EVALUATION = "evaluation"
STEP_REPORT = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChild:
    """A child object and the steps whose outputs it needs."""

    step: str
    object: Child
    needs: tuple[str, ...]
    arm: str | None = None


def children(pipeline: InstructionPretraining) -> tuple[PlannedChild, ...]:
    """The child objects of a pipeline, in the order in which they run (protocols.md 1)."""
    planned = [_corpus(pipeline)]
    tune = _tune(pipeline)
    if tune is not None:
        if tune.mined:
            planned.append(_tuning_tasks(pipeline))
        planned.append(_synthesizer(pipeline, tune))
    if any(m.source == "augmented" for arm in pipeline.spec.arms for m in _mixture(pipeline, arm)):
        planned.append(_synthesis(pipeline))
    planned += [_training(pipeline, arm, seed) for arm in pipeline.spec.arms for seed in pipeline.spec.seeds]
    planned.append(_evaluation(pipeline))
    return tuple(planned)


def plan_pipeline(builder: PlanBuilder, pipeline: InstructionPretraining, *, sample: int | None = None) -> None:
    """Stages of all children and of the report; with ``sample`` only up to a synthesis of so many documents."""
    check_tasks(pipeline.spec.evaluation.tasks)
    check_gate(pipeline.spec.evaluation, _baseline(pipeline))
    _check(builder, pipeline)
    for child in children(pipeline):
        name = child.object.metadata.name
        builder.owner = (child.object.kind, name)
        if sample is not None and child.step == STEP_SYNTHESIS:
            child = _with_sample(child, sample)
        builder.refs[child.object.kind, name] = _plan_child(builder, child)
        if sample is not None and child.step == STEP_SYNTHESIS:
            return
    builder.owner = (pipeline.kind, pipeline.metadata.name)
    stages = [s for s in builder.stages if s.kind != "report"]
    ready = all(s.result is not None for s in stages)
    section = None
    if ready:
        outputs = tuple(
            StageOutput(
                step=s.step, kind=s.kind, arm=s.arm, seed=s.seed, uri=s.result.uri, digest=s.result.digest,
                endpoint=s.output.endpoint, region=s.output.region, secret_ref=s.output.secret_ref,
            )
            for s in stages
            if s.result is not None and s.output is not None
        )  # fmt: skip
        section = ReportRun(stages=outputs, baseline=_baseline(pipeline))
    builder.add(
        STEP_REPORT, "report", output=below(pipeline.spec.storage, STEP_REPORT), section=section,
        waits_for=(STEP_EVALUATION,),
    )  # fmt: skip


def _check(builder: PlanBuilder, pipeline: InstructionPretraining) -> None:
    """Refuse what could only fail after earlier stages were paid for, in the words of the pipeline's own fields."""
    spec, tune = pipeline.spec, _tune(pipeline)
    wanted = spec.synthesis.synthesizer
    if wanted is not None and wanted.ref is not None:
        fix = "set synthesizer.model to its output"
        builder.lookup(wanted.ref, "spec.synthesis.synthesizer", fix=fix)
    for place, init in (
        ("spec.training.init", spec.training.init),
        *((f"spec.arms[{i}].training.init", a.training.init) for i, a in enumerate(spec.arms) if a.training.init),
        *((("spec.synthesis.synthesizer.tune.init", tune.init),) if tune else ()),
    ):
        if init is not None and init.ref is not None:
            builder.lookup(init.ref, place, fix="set init.from to that job's output")
    if tune is None:
        return
    positions = architecture(tune.init.preset, tune.init.config).get("max_position_embeddings")
    window = spec.synthesis.sampling.context_window
    if isinstance(positions, int) and window > positions:
        raise ConfigError(
            f"the synthesizer has {positions} positions",
            field="spec.synthesis.sampling.contextWindow",
            value=window,
            fix=f"use {positions} or less, or set tune.init.config.max_position_embeddings",
        )


def _with_sample(child: PlannedChild, sample: int) -> PlannedChild:
    spec = child.object.spec.model_copy(update={"max_documents": sample})
    return replace(child, object=child.object.model_copy(update={"spec": spec}))


def _plan_child(builder: PlanBuilder, child: PlannedChild) -> ResolvedInput | None:
    match child.object:
        case Corpus(spec=spec):
            return plan_corpus(builder, spec, step=child.step)
        case SynthesisJob(spec=spec):
            return plan_synthesis(builder, spec, waits_for=child.needs, step=child.step)
        case TrainingJob(spec=spec):
            return plan_training(builder, spec, waits_for=child.needs, step=child.step, arm=child.arm)
        case EvaluationJob(spec=spec):
            return plan_evaluation(builder, spec, waits_for=child.needs, step=child.step)


def _meta(pipeline: InstructionPretraining, step: str) -> ObjectMeta:
    return ObjectMeta(
        name=child_name(pipeline.metadata.name, step),
        namespace=pipeline.metadata.namespace,
        labels={},
        annotations={},
    )


def _ref(pipeline: InstructionPretraining, kind: str, step: str) -> ObjectRef:
    return ObjectRef.model_validate({"kind": kind, "name": child_name(pipeline.metadata.name, step)})


def _policy(pipeline: InstructionPretraining) -> dict[str, object]:
    spec = pipeline.spec
    return {
        "backoff_limit": spec.backoff_limit,
        "queue_name": spec.queue_name,
        "cleanup_policy": spec.cleanup_policy,
        "pod_template": spec.pod_template,
        "suspend": spec.suspend,
    }


def _corpus(pipeline: InstructionPretraining) -> PlannedChild:
    spec = pipeline.spec
    object_ = Corpus(
        api_version="instructpt.dev/v1alpha1", kind="Corpus", metadata=_meta(pipeline, STEP_CORPUS),
        spec=CorpusSpec(
            **{name: getattr(spec.corpus, name) for name in CorpusSource.model_fields}, **_policy(pipeline),
            split=spec.corpus.split, documents_per_shard=spec.corpus.documents_per_shard, shards=spec.synthesis.shards,
            storage=below(spec.storage, STEP_CORPUS), filters=spec.corpus.filters,
        ),
    )  # fmt: skip
    return PlannedChild(step=STEP_CORPUS, object=object_, needs=())


def _tune(pipeline: InstructionPretraining) -> TuneSpec | None:
    synthesizer = pipeline.spec.synthesis.synthesizer
    return None if synthesizer is None else synthesizer.tune


def _tuning_tasks(pipeline: InstructionPretraining) -> PlannedChild:
    spec = pipeline.spec
    object_ = SynthesisJob(
        api_version="instructpt.dev/v1alpha1", kind="SynthesisJob", metadata=_meta(pipeline, STEP_TUNING_TASKS),
        spec=SynthesisJobSpec(
            storage=below(spec.storage, STEP_TUNING_TASKS), input=Input(ref=_ref(pipeline, "Corpus", STEP_CORPUS)),
            split="tune", strategy="mined", engine=Engine(name="mined"), shots=spec.synthesis.shots,
            parallelism=spec.synthesis.parallelism, lease_seconds=spec.synthesis.lease_seconds,
            seed=spec.synthesis.seed, **_policy(pipeline),
        ),
    )  # fmt: skip
    return PlannedChild(step=STEP_TUNING_TASKS, object=object_, needs=(STEP_CORPUS,))


def _synthesizer(pipeline: InstructionPretraining, tune: TuneSpec) -> PlannedChild:
    spec = pipeline.spec
    synthesizer = spec.synthesis.synthesizer
    assert synthesizer is not None
    object_ = TrainingJob(
        api_version="instructpt.dev/v1alpha1", kind="TrainingJob", metadata=_meta(pipeline, STEP_SYNTHESIZER),
        spec=TrainingJobSpec(
            storage=below(spec.storage, STEP_SYNTHESIZER), prepared=below(spec.storage, "prepared"),
            objective="SynthesizerTuning", profile=synthesizer.profile, init=tune.init,
            tokenizer=_tokenizer(pipeline, tune.tokenizer, tune.init.preset), mixture=_tasks(pipeline, tune),
            tokens=tune.tokens, sequence_length=tune.sequence_length, global_batch_rows=tune.global_batch_rows,
            micro_batch_rows=tune.micro_batch_rows, optimizer=tune.optimizer, schedule=tune.schedule,
            max_repeats=tune.max_repeats, seed=spec.seeds[0], checkpoint=spec.training.checkpoint,
            precision=spec.training.precision, deepspeed=spec.training.deepspeed, nodes=1,
            gpus_per_node=spec.training.gpus_per_node, processes_per_node=spec.training.processes_per_node,
            resources=spec.training.resources, **_policy(pipeline),
        ),
    )  # fmt: skip
    needs = (STEP_CORPUS, STEP_TUNING_TASKS) if tune.mined else (STEP_CORPUS,)
    return PlannedChild(step=STEP_SYNTHESIZER, object=object_, needs=needs)


def _tasks(pipeline: InstructionPretraining, tune: TuneSpec) -> tuple[MixtureSource, ...]:
    """What the synthesizer is tuned on; the pipeline's other mixtures know it as ``source: tuning``."""
    if tune.mixture is not None:
        return tune.mixture
    if tune.mined:
        return (MixtureSource(name="tasks", ref=_ref(pipeline, "SynthesisJob", STEP_TUNING_TASKS)),)
    return (MixtureSource(name="tasks", uri=tune.tasks, format="augmented"),)


def _tokenizer(
    pipeline: InstructionPretraining, wanted: TokenizerSpec | None, preset: str | None
) -> TokenizerSpec | None:
    """A tokenizer that is trained learns from the train part, for every arm the same."""
    if wanted is None and preset == "tiny":
        wanted = TokenizerSpec(train=TokenizerTrain(vocab_size=DEFAULT_TINY_VOCABULARY))
    if wanted is None or wanted.train is None or wanted.train.corpus is not None:
        return wanted
    synthesizer = pipeline.spec.synthesis.synthesizer
    profile = wanted.train.profile or (synthesizer.profile if synthesizer and synthesizer.tune else None)
    corpus = Input(ref=_ref(pipeline, "Corpus", STEP_CORPUS))
    update = {"corpus": corpus, "split": "train", "profile": profile}
    return TokenizerSpec(train=wanted.train.model_copy(update=update))


def _synthesis(pipeline: InstructionPretraining) -> PlannedChild:
    spec = pipeline.spec
    wanted = spec.synthesis.synthesizer
    tuned = wanted is not None and wanted.tune is not None
    synthesizer = None
    if wanted is not None:
        synthesizer = Synthesizer(
            model=wanted.model, ref=_ref(pipeline, "TrainingJob", STEP_SYNTHESIZER) if tuned else wanted.ref,
            profile=wanted.profile, compat=wanted.compat,
        )  # fmt: skip
    object_ = SynthesisJob(
        api_version="instructpt.dev/v1alpha1", kind="SynthesisJob", metadata=_meta(pipeline, STEP_SYNTHESIS),
        spec=SynthesisJobSpec(
            **{name: getattr(spec.synthesis, name) for name in SynthesisSettings.model_fields}, **_policy(pipeline),
            storage=below(spec.storage, STEP_SYNTHESIS), input=Input(ref=_ref(pipeline, "Corpus", STEP_CORPUS)),
            split="train", strategy=spec.synthesis.strategy, synthesizer=synthesizer,
            completion_policy=spec.synthesis.completion_policy,
        ),
    )  # fmt: skip
    needs = (STEP_CORPUS, STEP_SYNTHESIZER) if tuned else (STEP_CORPUS,)
    return PlannedChild(step=STEP_SYNTHESIS, object=object_, needs=needs)


def _mixture(pipeline: InstructionPretraining, arm: Arm) -> tuple[MixtureSource, ...]:
    """The arm's sources; ``vanilla`` replaces augmented by raw: the same documents without pairs."""
    mixture = arm.training.mixture or pipeline.spec.training.mixture
    if arm.name == "vanilla" and arm.training.mixture is None:
        return _merged(
            m.model_copy(update={"source": "raw", "name": m.name or "raw"}) if m.source == "augmented" else m
            for m in mixture
        )
    return mixture


def _merged(mixture: Iterable[MixtureSource]) -> tuple[MixtureSource, ...]:
    """One entry for the raw corpus, with the weights added up: replacing augmented may have made two."""
    entries: list[MixtureSource] = []
    for entry in mixture:
        twin = next((i for i, e in enumerate(entries) if entry.source == "raw" and e.source == "raw"), None)
        if twin is None:
            entries.append(entry)
            continue
        both = (entries[twin], entry)
        if any(e.repeats is not None or e.max_tokens is not None for e in both):
            raise ConfigError(
                "holds for augmented or raw, which are one source in the arm vanilla",
                field="spec.training.mixture[].repeats",
                value=next(e.repeats or e.max_tokens for e in both if e.repeats or e.max_tokens),
                fix="give the arm vanilla a mixture of its own (arms[].training.mixture)",
            )
        entries[twin] = entries[twin].model_copy(update={"weight": both[0].weight + both[1].weight})
    return tuple(entries)


def _training(pipeline: InstructionPretraining, arm: Arm, seed: int) -> PlannedChild:
    spec = pipeline.spec
    step = arm_step(arm.name, seed, seeds=len(spec.seeds))
    settings = {name: getattr(spec.training, name) for name in TrainingSettings.model_fields}
    settings |= arm.training.overrides()
    settings["tokenizer"] = _tokenizer(pipeline, spec.training.tokenizer, settings["init"].preset)
    needs: list[str] = [STEP_CORPUS]
    mixture: list[MixtureSource] = []
    for entry in _mixture(pipeline, arm):
        resolved, need = _resolve_source(pipeline, entry)
        mixture.append(resolved)
        needs += [need] if need and need not in needs else []
    settings["mixture"] = tuple(mixture)
    settings["validation"] = _held_out(pipeline)
    object_ = TrainingJob(
        api_version="instructpt.dev/v1alpha1", kind="TrainingJob", metadata=_meta(pipeline, step),
        spec=TrainingJobSpec(
            **settings, **_policy(pipeline), storage=below(spec.storage, step),
            prepared=below(spec.storage, "prepared"), objective="Pretraining", seed=seed,
        ),
    )  # fmt: skip
    return PlannedChild(step=step, object=object_, needs=tuple(needs), arm=arm.name)


def _held_out(pipeline: InstructionPretraining) -> Validation | None:
    """What arms are validated on: of the corpus the part that no arm trains on."""
    wanted = pipeline.spec.training.validation
    if wanted is None or wanted.source.source is None:
        return wanted
    if wanted.source.split not in (None, "heldOut"):
        raise ConfigError(
            "arms are validated on the held-out part alone",
            field="spec.training.validation.source.split",
            value=wanted.source.split,
            fix="leave split out",
        )
    update = {"source": None, "ref": _ref(pipeline, "Corpus", STEP_CORPUS), "split": "heldOut"}
    return wanted.model_copy(update={"source": wanted.source.model_copy(update=update)})


def _resolve_source(pipeline: InstructionPretraining, entry: MixtureSource) -> tuple[MixtureSource, str | None]:
    """Turn a source's name into a ref to the child that produces it, and name that child's step."""
    if entry.source is None:
        return entry, None
    tune = _tune(pipeline)
    if entry.source == "tuning" and tune is not None and not tune.mined:
        return _tuning_set(entry, _tasks(pipeline, tune)), None
    if entry.source == "tuning" and tune is None:
        raise ConfigError(
            "there is no tuning set in this pipeline",
            field="spec.training.mixture[].source",
            value="tuning",
            fix="set synthesis.synthesizer.tune, or drop this source",
        )
    if entry.split not in (None, "train") or (entry.split is not None and entry.source != "raw"):
        raise ConfigError(
            "arms train on the train part alone; the others tune the synthesizer and evaluate",
            field="spec.training.mixture[].split",
            value=entry.split,
            fix="leave split out",
        )
    kind, step = {
        "augmented": ("SynthesisJob", STEP_SYNTHESIS),
        "raw": ("Corpus", STEP_CORPUS),
        "tuning": ("SynthesisJob", STEP_TUNING_TASKS),
    }[entry.source]
    update: dict[str, object] = {"source": None, "ref": _ref(pipeline, kind, step), "name": entry.name or entry.source}
    if entry.source == "raw":
        update["split"] = entry.split or "train"
    return entry.model_copy(update=update), step


def _tuning_set(entry: MixtureSource, tasks: tuple[MixtureSource, ...]) -> MixtureSource:
    """The synthesizer's tuning set as a source of an arm, with the weight and limits that the arm gives it."""
    if len(tasks) > 1:
        raise ConfigError(
            "the tuning set of this pipeline is several sources, which have no common weight",
            field="spec.training.mixture[].source",
            value="tuning",
            fix="name each of tune.mixture here, with its uri and format",
        )
    own = {"source", "ref", "uri", "digest", "format", "question_field", "answer_field", "tasks"} | set(
        Access.model_fields
    )
    kept = {name: getattr(tasks[0], name) for name in own}
    return entry.model_copy(update={**kept, "name": entry.name or "tuning"})


def _baseline(pipeline: InstructionPretraining) -> str:
    names = [arm.name for arm in pipeline.spec.arms]
    return "vanilla" if "vanilla" in names else names[-1]


def _evaluation(pipeline: InstructionPretraining) -> PlannedChild:
    spec = pipeline.spec
    steps = [
        (arm.name, seed, arm_step(arm.name, seed, seeds=len(spec.seeds))) for arm in spec.arms for seed in spec.seeds
    ]
    object_ = EvaluationJob(
        api_version="instructpt.dev/v1alpha1", kind="EvaluationJob", metadata=_meta(pipeline, STEP_EVALUATION),
        spec=EvaluationJobSpec(
            **{name: getattr(spec.evaluation, name) for name in EvaluationSettings.model_fields}, **_policy(pipeline),
            storage=below(spec.storage, STEP_EVALUATION), corpus=Input(ref=_ref(pipeline, "Corpus", STEP_CORPUS)),
            split="heldOut", baseline=_baseline(pipeline),
            models=tuple(Candidate(name=a, seed=s, ref=_ref(pipeline, "TrainingJob", step)) for a, s, step in steps),
        ),
    )  # fmt: skip
    return PlannedChild(step=STEP_EVALUATION, object=object_, needs=(STEP_CORPUS, *(step for _, _, step in steps)))
