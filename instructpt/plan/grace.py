"""How long the pods of a training may take to leave: before that their state has to be uploaded.

A pod that has nothing left to do leaves at once, so a period that is too long costs little, and one that is too short
costs the steps since the last checkpoint.
"""

from __future__ import annotations

import math
import re

from instructpt.api.presets import num_parameters

LEAST_SECONDS = 120
UNKNOWN_SECONDS = 1200
"""Where the size of the model is not known: enough for eight billion parameters on one node at the default rate."""

_STEP_SECONDS = 60
"""For the step under way, and for the copy to host memory, before the upload starts."""

_BYTES_PER_PARAMETER = 12
"""fp32 weights and the two moments of AdamW; each rank writes its part."""

_WAYS = 2
"""Up, and back to be verified."""

_VOCABULARY = 32_000
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
_UNIT = {"b": 1e9, "m": 1e6}


def training_grace_seconds(parameters: int | None, upload_bytes_per_second: int, nodes: int = 1) -> int:
    """Seconds between SIGTERM and SIGKILL.

    Args:
        parameters: Of the model; ``None`` where that is not known.
        upload_bytes_per_second: Rate at which a node uploads its state.
        nodes: That share the state, each uploading its part.
    """
    if parameters is None:
        return UNKNOWN_SECONDS
    moved = _WAYS * _BYTES_PER_PARAMETER * parameters / nodes
    return max(LEAST_SECONDS, _STEP_SECONDS + math.ceil(moved / upload_bytes_per_second))


def parameters_of(config: dict[str, object] | None, name: str | None) -> int | None:
    """Size of a model: from its shape, else from its name, as in ``Meta-Llama-3-8B``; ``None`` where neither tells."""
    if config is not None and all(part in config for part in _SHAPE):
        return num_parameters(config, int(str(config.get("vocab_size") or _VOCABULARY)))
    found = _SIZE.findall("/".join((name or "").rstrip("/").split("/")[-2:]))
    return max(
        (round(int(times or 1) * float(size) * _UNIT[unit.lower()]) for times, size, unit in found), default=None
    )
