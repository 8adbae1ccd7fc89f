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
from instructpt.training import attention as attentions
from instructpt.training import losses
from instructpt.training.attention import AttentionName


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
        ConfigError: It cannot be read, lacks a tensor or has one of another shape, has fewer positions than ``length``,
            or fewer embeddings than the tokenizer ids.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder), attn_implementation="sdpa", dtype=torch.float32, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"the model in {folder} cannot be loaded: {error}", field="init.from", fix="give a complete model folder"
        ) from error
    _check_whole(folder, sorted(report["missing_keys"]))
    check_positions(model.config, length)
    if vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} entries, the model {model.config.vocab_size}",
            field="tokenizer",
            fix="use the model's own tokenizer",
        )
    return cast("nn.Module", model)


def _check_whole(folder: Path, missing: list[str]) -> None:
    """Refuse a model without some of its tensors: transformers would draw them at random and go on."""
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(
            f"the model in {folder} lacks {len(missing)} of its tensors: {', '.join(missing[:3])}{more}",
            field="init.from",
            fix="give a complete model folder: all files that its index names, for this architecture",
        )


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
        attention: See :mod:`instructpt.training.attention`.

    Raises:
        ConfigError: The model does something that this would leave out.
    """

    def __init__(self, model: nn.Module, attention: AttentionName = "blocks") -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        config: Any = model.config
        _check_head(config)
        if attention != "mask":
            attentions.install(model)
        self._window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        self._is_linear = losses.install(cast("Any", model).get_output_embeddings())

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Tensor,
        bounds: Tensor,
        predict_from: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Sum of the losses of the targets, in nats.

        Args:
            input_ids: Shape (rows, length).
            positions: Shape (rows, length).
            segments: Shape (rows, length).
            bounds: Shape (pieces + 1,), int32, on the CPU.
            predict_from: Shape (targets,), in the flattened batch.
            labels: Shape (targets,).
        """
        hidden = self.hidden(input_ids, positions, segments, bounds)
        flat = hidden.reshape(-1, hidden.shape[-1])
        if labels.numel() == 0:
            return flat.float().sum() * 0.0  # keeps every parameter in the graph, as ZeRO's hooks need
        picked = flat.index_select(0, predict_from)
        head = cast("Any", self.model).get_output_embeddings()
        if self._is_linear:
            return cast("Tensor", head(picked, labels))
        size = losses.rows_at_once(int(cast("Any", self.model).config.vocab_size), picked.device)
        parts = zip(torch.split(picked, size), torch.split(labels, size), strict=True)
        sums = [cast("Tensor", checkpoint(self._loss, h, t, use_reentrant=False)) for h, t in parts]
        return torch.stack(sums).sum()

    def hidden(self, input_ids: Tensor, positions: Tensor, segments: Tensor, bounds: Tensor) -> Tensor:
        """Last hidden states, shape (rows, length, hidden); those of padding mean nothing."""
        decoder = cast("Any", self.model).get_decoder()
        mask, layout = None, None
        if self.attention == "mask":
            if isinstance(self._window, int) and self._window < input_ids.shape[1]:
                raise ConfigError(
                    f"the model looks back {self._window} tokens, which a mask over whole rows leaves out",
                    field="attention",
                    value="mask",
                    fix=f"use attention: auto, or sequenceLength {self._window} or less",
                )
            mask = attentions.document_mask(segments)
        else:
            layout = attentions.Layout(
                kernel=attentions.KERNELS[self.attention],
                sizes=bounds.diff().tolist(),
                bounds=bounds.to(input_ids.device, non_blocking=True),
            )
        out = decoder(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False,
            **attentions.arguments(layout),
        )  # fmt: skip
        return cast("Tensor", out.last_hidden_state)

    def logits(self, input_ids: Tensor, positions: Tensor, segments: Tensor, bounds: Tensor) -> Tensor:
        """Shape (rows, length, vocabulary)."""
        head = cast("Any", self.model).get_output_embeddings()
        return cast("Tensor", head(self.hidden(input_ids, positions, segments, bounds)))

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = cast("Any", self.model).get_output_embeddings()(hidden)
        return F.cross_entropy(logits.float(), labels, reduction="sum")


def _check_head(config: Any) -> None:
    """Refuse what some architectures do to logits after the head: the loss here would be that of another model."""
    for name, harmless in (("final_logit_softcapping", None), ("logit_scale", 1.0), ("logits_scaling", 1.0)):
        found = getattr(config, name, None)
        if found is not None and found != harmless:
            raise ConfigError(
                f"the architecture changes its logits by {name}={found}, which is not supported",
                field="init",
                fix="choose another model",
            )
