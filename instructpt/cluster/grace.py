"""How long a pod may take to leave: a training needs the time to upload its state (protocols.md 7)."""

from __future__ import annotations

import math

from instructpt.api.presets import num_parameters
from instructpt.api.runspec import RunSpec, TrainRun

GRACE_SECONDS = 60
"""Of everything that commits in small pieces: a worker stops between two of them."""

TRAIN_GRACE_SECONDS = 120
"""The least a training gets, and what it gets where the size of its state is not known."""

_STEP_SECONDS = 60
"""For the step under way, and for the copy to host memory, before the upload starts."""

_BYTES_PER_PARAMETER = 12
"""fp32 weights and the two moments of AdamW, in one file that the first rank writes."""

_VOCABULARY = 32_000
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def grace_seconds(runspec: RunSpec) -> int:
    """Seconds between SIGTERM and SIGKILL."""
    if runspec.verb != "train" or runspec.train is None:
        return GRACE_SECONDS
    size = state_bytes(runspec.train)
    if size is None:
        return TRAIN_GRACE_SECONDS
    rate = runspec.train.checkpoint.upload_bytes_per_second
    return max(TRAIN_GRACE_SECONDS, _STEP_SECONDS + math.ceil(size / rate))


def state_bytes(train: TrainRun) -> int | None:
    """Size of a checkpoint, from the shape of the model; ``None`` where a hub id or a prefix is all there is."""
    config = train.init.config
    if config is None or any(name not in config for name in _SHAPE):
        return None
    vocabulary = int(config.get("vocab_size") or _VOCABULARY)
    return _BYTES_PER_PARAMETER * num_parameters(config, vocabulary)
