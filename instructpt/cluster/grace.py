"""How long a pod may take to leave."""

from __future__ import annotations

from instructpt.api.runspec import RunSpec
from instructpt.plan.grace import parameters_of, training_grace_seconds

GRACE_SECONDS = 60
"""Of everything that commits in small pieces: a worker stops between two of them."""


def grace_seconds(runspec: RunSpec) -> int:
    """Seconds between SIGTERM and SIGKILL."""
    train = runspec.train
    if runspec.verb != "train" or train is None:
        return GRACE_SECONDS
    config = None if train.init.config is None else dict(train.init.config)
    name = None if train.init.model is None else train.init.model.uri
    size, rate = parameters_of(config, name), train.checkpoint.upload_bytes_per_second
    return training_grace_seconds(size, rate, train.nodes)
