"""Named architectures, as dictionaries for transformers: no heavy library is needed to read them.

``500m`` and ``1.3b`` follow the sizes of arXiv 2406.14491, section 3; their exact shapes are not published, so these
are Llama shapes with that many parameters [unverified].
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
}


def architecture(preset: str | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The transformers config that a preset, a config, or a config laid over a preset comes to."""
    return {**(PRESETS[preset] if preset else {}), **(config or {})}


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
