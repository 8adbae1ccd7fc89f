"""The model that is trained: built from a config or loaded from a folder, and its loss over packed rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody knows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instructpt.errors import ConfigError

CHUNK_LOGITS = 1 << 26
"""Logits held at once; more targets than that are done in pieces, recomputed in the backward pass."""


def build_model(
    config: Mapping[str, Any], *, seed: int, vocab_size: int, special: Mapping[str, int | None], length: int
) -> nn.Module:
    """A model from scratch.

    Args:
        config: A transformers config with ``model_type``.
        seed: Of the weights.
        vocab_size: Of the tokenizer; wins over the config's.
        special: ``bos_token_id``, ``eos_token_id``, ``pad_token_id`` of the tokenizer.
        length: Tokens of a row; the model must have as many positions.

    Raises:
        ConfigError: The config is of no known model, or has fewer positions than ``length``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    fields.setdefault("max_position_embeddings", length)
    try:
        named = {**fields, "vocab_size": vocab_size, **special}
        made = AutoConfig.for_model(config.get("model_type", "llama"), **named)
    # Each kind of mistake in a config has an exception of its own there.
    except Exception as error:
        raise _unusable(error) from error
    check_positions(made, length)
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa", dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _unusable(error) from error
    return cast("nn.Module", model)


def _unusable(error: Exception) -> ConfigError:
    text = " ".join(str(error).split())
    return ConfigError(f"transformers cannot make a model of it: {text}", field="init.config", fix="correct the config")


def load_model(folder: Path, *, vocab_size: int, length: int) -> nn.Module:
    """A model in a folder, in fp32.

    Raises:
        ConfigError: It cannot be read, has fewer positions than ``length``, or fewer embeddings than the tokenizer ids.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), attn_implementation="sdpa", dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the model in {folder} cannot be loaded: {error}", field="init.from", fix="give a complete model folder"
        ) from error
    check_positions(model.config, length)
    if vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} entries, the model {model.config.vocab_size}",
            field="tokenizer",
            fix="use the model's own tokenizer",
        )
    return cast("nn.Module", model)


def check_positions(config: Any, length: int) -> None:
    """Refuse rows longer than the model has positions.

    Raises:
        ConfigError: Naming both numbers.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and length > limit:
        raise ConfigError(
            f"the model has {limit} positions",
            field="sequenceLength",
            value=length,
            fix=f"use {limit} or less, or set init.config.max_position_embeddings",
        )


class PackedCausalLM(nn.Module):
    """A causal language model over packed rows: attention stays inside a segment, logits only where there is a loss.

    Args:
        model: A causal language model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, positions: Tensor, segments: Tensor, predict_from: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum of the losses of the targets, in nats.

        Args:
            input_ids: Shape (rows, length).
            positions: Shape (rows, length).
            segments: Shape (rows, length).
            predict_from: Shape (targets,), in the flattened batch.
            labels: Shape (targets,).
        """
        hidden = self.hidden(input_ids, positions, segments)
        flat = hidden.reshape(-1, hidden.shape[-1])
        if labels.numel() == 0:
            return flat.float().sum() * 0.0  # keeps every parameter in the graph, as ZeRO's hooks need
        picked = flat.index_select(0, predict_from)
        size = max(1, CHUNK_LOGITS // self._vocab_size())
        if labels.numel() <= size:
            return self._loss(picked, labels)
        parts = zip(torch.split(picked, size), torch.split(labels, size), strict=True)
        losses = [cast("Tensor", checkpoint(self._loss, h, t, use_reentrant=False)) for h, t in parts]
        return torch.stack(losses).sum()

    def hidden(self, input_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Last hidden states, shape (rows, length, hidden); those of padding mean nothing."""
        decoder = cast("Any", self.model).get_decoder()
        out = decoder(
            input_ids=input_ids, attention_mask=document_mask(segments), position_ids=positions, use_cache=False
        )
        return cast("Tensor", out.last_hidden_state)

    def logits(self, input_ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Shape (rows, length, vocabulary)."""
        head = cast("Any", self.model).get_output_embeddings()
        return cast("Tensor", head(self.hidden(input_ids, positions, segments)))

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = cast("Any", self.model).get_output_embeddings()(hidden)
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def _vocab_size(self) -> int:
        return int(cast("Any", self.model).config.vocab_size)


def document_mask(segments: Tensor) -> Tensor:
    """Who may see whom: shape (rows, 1, length, length), True inside a segment up to oneself.

    Padding is a segment of its own, so that no row of the mask is empty (its softmax would not be a number).
    """
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (same & causal).unsqueeze(1)
