"""What can be found wrong on this machine before a run spends anything: names of plug-ins, model folders, nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructpt.api.v1alpha1 import Corpus, InstructionPretraining, SynthesisJob, TrainingJob
from instructpt.api.v1alpha1.decontamination import Decontamination
from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.api.v1alpha1.trainingjob import ModelInit, TrainingSettings
from instructpt.errors import ConfigError
from instructpt.plan.planner import AnyResource


def preflight(resource: AnyResource, *, here: bool = True) -> None:
    """Refuse what a worker would refuse later.

    Args:
        resource: The object.
        here: Whether it is to run on this machine, and not just to be looked at: then it has one node.

    Raises:
        ConfigError: A name is unknown, a model folder or an evaluation set is not there, or there are several nodes.
    """
    match resource:
        case Corpus(spec=spec):
            _sets("spec.filters", spec.filters.decontaminate)
        case SynthesisJob(spec=spec):
            _synthesis("spec", spec, spec.strategy, spec.synthesizer)
        case TrainingJob(spec=spec):
            _training("spec", spec, here)
            _profile("spec.profile", spec.profile)
        case InstructionPretraining(spec=spec):
            _sets("spec.corpus.filters", spec.corpus.filters.decontaminate)
            _synthesis("spec.synthesis", spec.synthesis, spec.synthesis.strategy, spec.synthesis.synthesizer)
            _training("spec.training", spec.training, here)
            for index, arm in enumerate(spec.arms):
                if arm.training.init is not None:
                    _model(f"spec.arms[{index}].training.init.from", arm.training.init.from_)
            tune = spec.synthesis.synthesizer.tune if spec.synthesis.synthesizer else None
            if tune is not None:
                _init("spec.synthesis.synthesizer.tune.init", tune.init)


def _synthesis(field: str, settings: SynthesisSettings, strategy: str, synthesizer: Any) -> None:
    from instructpt.synthesis import engine, filters, strategies, templates

    _named(f"{field}.strategy", strategy, strategies.load)
    if settings.engine.name != strategies.RULES_ENGINE:
        _named(f"{field}.engine.name", settings.engine.name, engine.registry.get)
    _named(f"{field}.templates", settings.templates, templates.load)
    for index, name in enumerate(settings.filters.plugins):
        _named(f"{field}.filters.plugins[{index}]", name, filters.registry.get)
    _sets(f"{field}.filters", settings.filters.decontaminate)
    if synthesizer is not None:
        _profile(f"{field}.synthesizer.profile", synthesizer.profile)
        _model(f"{field}.synthesizer.model", synthesizer.model)


def _sets(field: str, wanted: Decontamination | None) -> None:
    """Evaluation sets are read first when they are needed, which may be hours later."""
    if wanted is not None:
        from instructpt.corpus.contamination import check_sets_here

        check_sets_here(wanted, f"{field}.decontaminate")


def _training(field: str, settings: TrainingSettings, here: bool) -> None:
    _init(f"{field}.init", settings.init)
    check_length(f"{field}.sequenceLength", settings.init.from_, settings.sequence_length)
    if settings.tokenizer is not None:
        _model(f"{field}.tokenizer.from", settings.tokenizer.from_)
    if here and settings.nodes > 1:
        raise ConfigError(
            "needs a cluster; a run on this machine has one node",
            field=f"{field}.nodes",
            value=settings.nodes,
            fix="set nodes: 1 and processesPerNode or gpusPerNode, or apply the file to a cluster",
        )


def _init(field: str, init: ModelInit) -> None:
    _model(f"{field}.from", init.from_)


def _profile(field: str, name: str) -> None:
    from instructpt.synthesis import profiles

    _named(field, name, profiles.load)


def _named(field: str, name: str, load: Any) -> None:
    try:
        load(name)
    except ConfigError as error:
        raise ConfigError(error.message, field=field, value=name, fix=error.fix) from error


def _model(field: str, uri: str | None) -> None:
    """A path that is plainly a folder must be one; anything else may be a hub id or a prefix."""
    if uri is None or "://" in uri or not uri.startswith((".", "/", "~")):
        return
    if not Path(uri).expanduser().is_dir():
        raise ConfigError("the model folder does not exist", field=field, value=uri, fix="correct the path")


def check_length(field: str, model: str | None, length: int) -> None:
    """Refuse rows longer than the model of a folder here has positions.

    Raises:
        ConfigError: Naming both numbers.
    """
    config = Path(model).expanduser() / "config.json" if model is not None and "://" not in model else None
    if config is None or not config.is_file():
        return
    try:
        positions = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (ValueError, AttributeError):
        return  # the worker that loads it says what is wrong with it
    if isinstance(positions, int) and length > positions:
        raise ConfigError(
            f"the model has {positions} positions", field=field, value=length, fix=f"use {positions} or less"
        )
