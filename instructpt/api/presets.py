"""Named architectures, as dictionaries for transformers: no heavy library is needed to read them.

``125m`` and ``350m`` have the depth and width of the two smallest models of Brown et al., arXiv 2005.14165, table 2.1,
with the gated MLP of Llama at the same size; these are also sizes of the study of arXiv 2402.05616. ``500m`` and
``1.3b`` follow the sizes of arXiv 2406.14491, section 3; their exact shapes are not published, so these are Llama
shapes with that many parameters [unverified]. ``llama3-8b`` continues published weights; its shape stands here so that
a plan knows what it takes (arXiv 2407.21783, table 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **_LLAMA,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "125m": {
        **_LLAMA,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "350m": {
        **_LLAMA,
        "hidden_size": 1024,
        "intermediate_size": 2736,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "500m": {
        **_LLAMA,
        "hidden_size": 1536,
        "intermediate_size": 4320,
        "num_hidden_layers": 15,
        "num_attention_heads": 24,
        "num_key_value_heads": 24,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "1.3b": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 20,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "llama3-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}

CONTINUED: dict[str, str] = {"llama3-8b": "meta-llama/Meta-Llama-3-8B"}
"""Presets that continue a published model: its hub id. Weights, config and tokenizer are that model's."""

_KNOWN: dict[str, dict[str, Any]] = {
    "meta-llama-3-8b": PRESETS["llama3-8b"],
    "llama-3.1-8b": PRESETS["llama3-8b"] | {"max_position_embeddings": 131_072},
    "mistral-7b-v0.1": {
        **_LLAMA,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}
"""Shapes of published models by the last part of their name, for plans alone: a worker reads the model's own config."""


def architecture(preset: str | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The transformers config that a preset, a config, or a config laid over a preset comes to."""
    return {**(PRESETS[preset] if preset else {}), **(config or {})}


def known_shape(model: str | None) -> dict[str, Any]:
    """The shape of a published model, by its hub id, or by a folder of the same name; empty where it is not known."""
    name = (model or "").split("@")[0].rstrip("/").rsplit("/", 1)[-1].lower()
    return dict(_KNOWN.get(name, {}))


def expansion(preset: str) -> dict[str, Any]:
    """What a preset stands for, as fields of ``init`` (and, where it continues a model, what that model is).

    Raises:
        KeyError: There is no such preset.
    """
    config = dict(PRESETS[preset])
    return {"from": CONTINUED[preset], "shape": config} if preset in CONTINUED else {"config": config}


def num_parameters(config: Mapping[str, Any], vocab_size: int) -> int:
    """Parameters of a Llama-shaped config (gated MLP, grouped-query attention), embeddings included."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * int(config["intermediate_size"])
    embeddings = vocab_size * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + mlp + 2 * hidden) + hidden + embeddings
