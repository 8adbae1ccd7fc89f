"""Checks of an evaluation that planning and workers share: refused before anything is spent, in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from instructpt.api.v1alpha1.evaluationjob import DEFAULT_TASKS, EvaluationSettings
from instructpt.errors import ConfigError


def check_tasks(names: Sequence[str]) -> None:
    """Refuse tasks that nothing here can measure.

    Raises:
        ConfigError: A name is unknown, or stands there twice.
    """
    for index, name in enumerate(names):
        if name not in DEFAULT_TASKS:
            raise ConfigError(
                "is not a known task",
                field=f"spec.evaluation.tasks[{index}]",
                value=name,
                fix=f"use {', '.join(DEFAULT_TASKS)}; tasks of lm-eval are not supported yet",
            )
        if name in names[:index]:
            raise ConfigError(
                "stands there twice", field=f"spec.evaluation.tasks[{index}]", value=name, fix="name it once"
            )


def check_gate(settings: EvaluationSettings, baseline: str | None) -> None:
    """Refuse a gate that could never be judged.

    Raises:
        ConfigError: Its metric is not measured, or there is no baseline to gain on.
    """
    if settings.gate is None:
        return
    if settings.gate.metric not in settings.tasks:
        raise ConfigError(
            "is not among the tasks that are measured",
            field="spec.evaluation.gate.metric",
            value=settings.gate.metric,
            fix=f"use one of {', '.join(settings.tasks)}, or add it to tasks",
        )
    if baseline is None:
        raise ConfigError(
            "a gate needs a baseline to gain on", field="spec.baseline", value=baseline, fix="name one of the models"
        )
