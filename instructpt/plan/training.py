"""TrainingJob -> tokenizer, token shards of each source, training."""

from __future__ import annotations

from collections.abc import Sequence

from instructpt.api.base import StorageSpec
from instructpt.api.presets import architecture, known_shape
from instructpt.api.quotas import Share, share_tokens
from instructpt.api.runspec import (
    InitRun,
    PackRun,
    PreparedSource,
    ResolvedInput,
    RunSpec,
    TokenizerRun,
    TrainRun,
    TrainSource,
    ValidationRun,
)
from instructpt.api.v1alpha1.mixturesource import OBJECTIVE_FORMATS, MixtureSource, SourceFormat
from instructpt.api.v1alpha1.sourceformats import Formatting, TaskCollection
from instructpt.api.v1alpha1.trainingjob import Kernels, TokenizerSpec, TokenizerTrain, TrainingJobSpec, Validation
from instructpt.errors import ConfigError
from instructpt.plan.builder import PlanBuilder, access_of
from instructpt.plan.naming import below

DEFAULT_TINY_VOCABULARY = 4096
VALIDATION = "validation"
"""Name of the held-out text in steps and lineage."""


def plan_training(
    builder: PlanBuilder,
    spec: TrainingJobSpec,
    *,
    waits_for: tuple[str, ...] = (),
    step: str = "train",
    arm: str | None = None,
) -> ResolvedInput | None:
    """Preparation of each source on its own, so that jobs share it, then training.

    Args:
        builder: Collects the stages.
        spec: The job.
        waits_for: Steps that its inputs come from.
        step: Prefix of the steps.
        arm: Arm that is trained, if any.
    """
    _check(spec)
    init = None
    if spec.init.ref is not None:
        init = builder.lookup(spec.init.ref, "spec.init", fix="set init.from to that job's output")
    entries = [
        _source(builder, source_name(i, entry), entry, f"spec.mixture[{i}]") for i, entry in enumerate(spec.mixture)
    ]
    prepared = spec.prepared or below(spec.storage, "prepared")
    tokenizer, tokenizer_step = _plan_tokenizer(
        builder, spec, entries[0], prepared, f"{step}.tokenizer", waits_for, init
    )
    packed: list[ResolvedInput | None] = []
    for entry, mixed in zip(entries, spec.mixture, strict=True):
        section = None
        if entry is not None and tokenizer is not None:
            section = PackRun(
                source=entry, tokenizer=tokenizer, sequence_length=spec.sequence_length, objective=spec.objective,
                profile=spec.profile,
            )  # fmt: skip
        place = None if section is None else _by_content(prepared, "tokens", builder, section)
        packed.append(
            builder.add(
                f"{step}.pack-{source_name(len(packed), mixed)}",
                "pack",
                output=place,
                section=section,
                waits_for=(*waits_for, *tokenizer_step),
                parallelism=spec.prepare_parallelism,
                arm=arm,
            )  # fmt: skip
        )
    pack_steps = tuple(f"{step}.pack-{source_name(i, m)}" for i, m in enumerate(spec.mixture))
    if spec.tokens is not None:
        _check_budget(builder, spec, spec.tokens, packed)
    held_out = None
    if spec.validation is not None:
        held_out = _plan_validation(
            builder, spec, spec.validation, prepared, tokenizer, step, waits_for, tokenizer_step, arm
        )
        pack_steps += (f"{step}.pack-{VALIDATION}",)
    train = None
    ready = tokenizer is not None and (spec.init.ref is None or init is not None)
    ready = ready and (spec.validation is None or held_out is not None)
    if ready and tokenizer is not None and all(p is not None for p in packed):
        train = _train_section(spec, tokenizer, [p for p in packed if p is not None], init, held_out)
    return builder.add(
        step, "train", output=spec.storage, section=train, waits_for=pack_steps, replicas=spec.nodes,
        resources=spec.resources, arm=arm, seed=spec.seed if arm else None,
    )  # fmt: skip


def _plan_validation(
    builder: PlanBuilder,
    spec: TrainingJobSpec,
    validation: Validation,
    prepared: StorageSpec,
    tokenizer: ResolvedInput | None,
    step: str,
    waits_for: tuple[str, ...],
    tokenizer_step: tuple[str, ...],
    arm: str | None,
) -> ResolvedInput | None:
    """Token shards of the held-out text, packed like a source."""
    entry = _source(builder, VALIDATION, validation.source, "spec.validation.source")
    section = None
    if entry is not None and tokenizer is not None:
        section = PackRun(
            source=entry, tokenizer=tokenizer, sequence_length=spec.sequence_length, objective=spec.objective,
            profile=spec.profile,
        )  # fmt: skip
    return builder.add(
        f"{step}.pack-{VALIDATION}",
        "pack",
        output=None if section is None else _by_content(prepared, "tokens", builder, section),
        section=section,
        waits_for=(*waits_for, *tokenizer_step),
        parallelism=spec.prepare_parallelism,
        arm=arm,
    )


def _check(spec: TrainingJobSpec) -> None:
    """Refuse what could only fail in a worker, after something was spent."""
    names = [source_name(i, entry) for i, entry in enumerate(spec.mixture)]
    for index, name in enumerate(names):
        if name.endswith("-finalize"):
            raise ConfigError(
                "ends like a finishing task",
                field=f"spec.mixture[{index}].name",
                value=name,
                fix="choose a name that does not end with -finalize",
            )
        if name == VALIDATION and spec.validation is not None:
            raise ConfigError(
                "is the name of the text that is validated on",
                field=f"spec.mixture[{index}].name",
                value=name,
                fix="choose another name",
            )
        if name in names[:index]:
            raise ConfigError(
                "is the name of two sources",
                field=f"spec.mixture[{index}].name",
                value=name,
                fix="give each its own name",
            )
        _check_format(spec, index)
    config = architecture(spec.init.preset, spec.init.config) or known_shape(spec.init.from_)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and spec.sequence_length > positions:
        raise ConfigError(
            f"the model has {positions} positions",
            field="spec.sequenceLength",
            value=spec.sequence_length,
            fix=f"use {positions} or less"
            + ("" if spec.init.model else ", or set init.config.max_position_embeddings"),
        )
    if spec.epochs is None and all(entry.repeats is not None for entry in spec.mixture):
        raise ConfigError(
            "every source has repeats, so none can fill the budget",
            field="spec.mixture",
            value=len(spec.mixture),
            fix="give one source a weight instead of repeats",
        )


def _check_budget(
    builder: PlanBuilder, spec: TrainingJobSpec, tokens: int, packed: Sequence[ResolvedInput | None]
) -> None:
    """Refuse a mixture that its sources cannot fill as soon as all are packed: before a GPU is asked for.

    Raises:
        ConfigError: With the numbers.
    """
    results = {stage.result.digest: stage.result for stage in builder.stages if stage.result and stage.kind == "pack"}
    found = [results.get(p.digest or "") if p is not None else None for p in packed]
    if any(result is None or "tokens" not in result.counts for result in found):
        return
    shares = [
        Share(
            name=source_name(i, entry), available=result.counts["tokens"], weight=entry.weight, repeats=entry.repeats,
            max_tokens=entry.max_tokens, max_repeats=entry.max_repeats or spec.max_repeats,
        )
        for i, (entry, result) in enumerate(zip(spec.mixture, found, strict=True))
        if result is not None
    ]  # fmt: skip
    try:
        share_tokens(tokens, shares)
    except ConfigError as error:
        raise ConfigError(error.message, field=f"spec.{error.field}", value=error.value, fix=error.fix) from error


def _check_format(spec: TrainingJobSpec, index: int) -> None:
    """A tuning learns answers, so its sources must say what the answers are."""
    entry, learned = spec.mixture[index], OBJECTIVE_FORMATS.get(spec.objective)
    format_ = _format(entry)
    if learned is None or format_ is None or format_ in learned:
        return
    raise ConfigError(
        f"objective {spec.objective} takes its loss on answers alone, and such a source does not say what they are",
        field=f"spec.mixture[{index}].format",
        value=format_,
        fix=f"give a source of format {' or '.join(learned)}, or set objective: Pretraining",
    )


def source_name(index: int, entry: MixtureSource) -> str:
    """Name of a mixture entry in receipts and steps."""
    return entry.name or entry.source or (entry.ref.name if entry.ref else f"source-{index}")


def _format(entry: MixtureSource) -> SourceFormat | None:
    """How a mixture entry is read; None where a location says nothing of it."""
    if entry.format is not None:
        return entry.format
    if entry.ref is not None:
        return "corpus" if entry.ref.kind == "Corpus" else "augmented"
    defaults: dict[str, SourceFormat] = {"augmented": "augmented", "raw": "corpus", "tuning": "augmented"}
    return defaults.get(entry.source or "")


def _source(builder: PlanBuilder, name: str, entry: MixtureSource, field: str) -> PreparedSource | None:
    if entry.ref is not None:
        place = builder.lookup(entry.ref, field, fix="set uri instead")
    else:
        assert entry.uri is not None
        place = ResolvedInput(uri=entry.uri, digest=entry.digest, **access_of(entry))
    if place is None:
        return None
    format_ = _format(entry)
    if format_ is None:
        raise ConfigError(
            "must be set where a source is given by uri",
            field=f"{field}.format",
            fix="augmented or corpus for a prefix with a manifest; instructions, tasks, jsonl, parquet, arrow, text "
            "for files",
        )
    return PreparedSource(
        name=name, format=format_, split=entry.split, text_field=entry.text_field,
        question_field=entry.question_field, answer_field=entry.answer_field,
        formatting=None if entry.formatting == Formatting(name="space") else entry.formatting,
        tasks=None if entry.tasks == TaskCollection() else entry.tasks, **dict(place),
    )  # fmt: skip


def _plan_tokenizer(
    builder: PlanBuilder,
    spec: TrainingJobSpec,
    first: PreparedSource | None,
    prepared: StorageSpec,
    step: str,
    waits_for: tuple[str, ...],
    init: ResolvedInput | None,
) -> tuple[ResolvedInput | None, tuple[str, ...]]:
    wanted = spec.tokenizer
    if wanted is None and spec.init.preset == "tiny":
        wanted = TokenizerSpec(train=TokenizerTrain(vocab_size=DEFAULT_TINY_VOCABULARY))
    if wanted is None:
        return (ResolvedInput(uri=spec.init.model) if spec.init.model else init), ()
    if wanted.from_ is not None:
        return ResolvedInput(uri=wanted.from_), ()
    assert wanted.train is not None
    source = first
    if wanted.train.corpus is not None:
        place = builder.resolve(wanted.train.corpus, "spec.tokenizer.train.corpus")
        source = (
            None
            if place is None
            else PreparedSource(name="tokenizer", format="corpus", split=wanted.train.split, **dict(place))
        )
    section = None
    if source is not None:
        section = TokenizerRun(source=source, vocab_size=wanted.train.vocab_size, profile=wanted.train.profile)
    place_ = None if section is None else _by_content(prepared, "tokenizer", builder, section)
    return builder.add(step, "tokenizer", output=place_, section=section, waits_for=waits_for), (step,)


def _by_content(prepared: StorageSpec, kind: str, builder: PlanBuilder, section: TokenizerRun | PackRun) -> StorageSpec:
    """A place named by what is computed, so that arms, seeds and jobs find each other's results."""
    sections = {"tokenizer": section} if isinstance(section, TokenizerRun) else {"pack": section}
    probe = RunSpec(
        verb="prepare", owner_kind="", owner_name="", step="", output=prepared, code_version=builder.code_version,
        **sections,
    )  # fmt: skip
    return below(prepared, kind, probe.work_key())


def _train_section(
    spec: TrainingJobSpec,
    tokenizer: ResolvedInput,
    packed: list[ResolvedInput],
    init: ResolvedInput | None,
    held_out: ResolvedInput | None,
) -> TrainRun:
    if spec.init.model is not None:
        init_run = InitRun(model=ResolvedInput(uri=spec.init.model))
    elif init is not None:
        init_run = InitRun(model=init)
    else:
        init_run = InitRun(config=architecture(spec.init.preset, spec.init.config))
    validation = None
    if spec.validation is not None and held_out is not None:
        validation = ValidationRun(
            source=TrainSource(name=VALIDATION, weight=1.0, max_repeats=1, **dict(held_out)),
            every_steps=spec.validation.every_steps,
            tokens=spec.validation.tokens,
        )
    # Stands in the model's manifest; the default is left out, so that trainings under way keep their keys.
    named = spec.objective == "SynthesizerTuning" and spec.profile != TrainingJobSpec.model_fields["profile"].default
    return TrainRun(
        objective=spec.objective, profile=spec.profile if named else None, init=init_run, tokenizer=tokenizer,
        sources=tuple(
            TrainSource(
                name=source_name(i, entry), weight=entry.weight, max_repeats=entry.max_repeats or spec.max_repeats,
                repeats=entry.repeats, max_tokens=entry.max_tokens, **dict(place),
            )
            for i, (entry, place) in enumerate(zip(spec.mixture, packed, strict=True))
        ),
        tokens=spec.tokens, epochs=spec.epochs, validation=validation,
        kernels=None if spec.kernels == Kernels() else spec.kernels,
        sequence_length=spec.sequence_length, global_batch_rows=spec.global_batch_rows,
        micro_batch_rows=spec.micro_batch_rows, optimizer=spec.optimizer, schedule=spec.schedule,
        gradient_clip=spec.gradient_clip, precision=spec.precision, deepspeed=spec.deepspeed, nodes=spec.nodes,
        processes_per_node=spec.processes_per_node, gpus_per_node=spec.gpus_per_node, checkpoint=spec.checkpoint,
        seed=spec.seed,
    )  # fmt: skip
