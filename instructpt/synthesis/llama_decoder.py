"""A small decoder for Llama-shaped models: many completions in one forward pass, little Python between kernels.

The model's own forward spends most of its time on bookkeeping when the model is small, and completes one prompt at a
time. This one keeps a key-value cache of ``lanes`` prompts, fuses the projections that share an input, and advances
all lanes by one token at once. Its results are checked against the model's own forward when it is made.

Sources: RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), gated MLP (arXiv 2002.05202), grouped-query
attention (arXiv 2305.13245), as put together in Llama (arXiv 2302.13971).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor

_ROPE = {"default", "linear", "llama3"}
_FIRST_LENGTH = 256
_CHECK_PROMPT, _CHECK_TOTAL = 9, 16


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer; ``qkv`` and ``gate_up`` are two and three of the model's stacked along the output."""

    norm_in: Tensor
    qkv: Tensor
    out: Tensor
    norm_mlp: Tensor
    gate_up: Tensor
    down: Tensor


def supports(model: Any) -> bool:
    """Whether a transformers model has exactly the shape that this decoder computes."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    parts = ("attention_bias", "mlp_bias", "sliding_window")
    return (
        type(model).__name__ in ("LlamaForCausalLM", "MistralForCausalLM")
        and getattr(config, "hidden_act", None) == "silu"
        and rope.get("rope_type", "default") in _ROPE
        and not any(getattr(config, part, None) for part in parts)
        and all(name.endswith("weight") for name, _ in model.named_parameters())
    )


class LlamaDecoder:
    """Advances up to ``lanes`` completions together. Lanes ``0..n-1`` are in use; dropping one moves the last there.

    Args:
        model: A transformers model that ``supports`` accepts; its weights are shared or copied, not changed.
        lanes: Completions at once.
        length: The longest prompt with its completion, in tokens.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, *, lanes: int, length: int) -> None:
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        self._eps = float(config.rms_norm_eps)
        inner = model.model
        self._embedding: Tensor = inner.embed_tokens.weight.detach()
        self._head: Tensor = model.lm_head.weight.detach()
        self._norm: Tensor = inner.norm.weight.detach()
        self._layers = [_weights(layer) for layer in inner.layers]
        self._width = (self._embedding.shape[1],)
        positions = torch.arange(length, device=self._embedding.device)
        cosine, sine = inner.rotary_emb(self._embedding, positions[None])
        self._cosine: Tensor = cosine[0]
        # Rotation by halves as roll and add: the first half of the rolled vector enters with a minus sign.
        self._sine: Tensor = torch.cat([-sine[0, :, : self._size // 2], sine[0, :, self._size // 2 :]], dim=-1)
        self._lanes, self._length = lanes, length
        self._positions: list[int] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._allocate(min(_FIRST_LENGTH, length))

    @property
    def active(self) -> int:
        """Lanes in use."""
        return len(self._positions)

    @torch.inference_mode()
    def admit(self, ids: Sequence[int]) -> Tensor:
        """Read a prompt into the next lane; logits of its first completed token, shape (vocabulary,)."""
        lane, count = len(self._positions), len(ids)
        self._reserve(count)

        def keep(index: int, key: Tensor, value: Tensor) -> None:
            self._keys[index][lane, :, :count] = key.transpose(0, 1)
            self._values[index][lane, :, :count] = value.transpose(0, 1)

        x = self._read(ids, keep)
        self._positions.append(count)
        return self._logits(x[-1:])[0]

    @torch.inference_mode()
    def score(self, ids: Sequence[int], first: int) -> Tensor:
        """Log-probabilities of ``ids[first:]``, each given all ids before it; no lane is used."""
        logits = self._logits(self._read(ids, lambda index, key, value: None)[first - 1 : -1])
        return log_probabilities(logits, ids[first:])

    def _read(self, ids: Sequence[int], keep: Callable[[int, Tensor, Tensor], None]) -> Tensor:
        """The residual stream (n, hidden) of a text; ``keep`` gets keys and values (n, heads, size) of each layer."""
        count = len(ids)
        x = F.embedding(torch.tensor(ids, device=self._embedding.device), self._embedding)
        cosine, sine = self._cosine[:count, None], self._sine[:count, None]
        group = self._heads // self._kv_heads
        for index, layer in enumerate(self._layers):
            query, key, value = self._project(x, layer, cosine, sine)
            keep(index, key, value)
            wide_key, wide_value = (part.repeat_interleave(group, dim=1).transpose(0, 1) for part in (key, value))
            mixed = F.scaled_dot_product_attention(
                query.transpose(0, 1)[None], wide_key[None], wide_value[None], is_causal=True
            )
            x = self._mix(x, mixed[0].transpose(0, 1).reshape(count, -1), layer)
        return x

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Take in one token for each lane in use; logits of the next ones, shape (lanes in use, vocabulary)."""
        count, device = len(self._positions), self._embedding.device
        longest = max(self._positions) + 1
        self._reserve(longest)
        positions = torch.tensor(self._positions, device=device)
        lanes = torch.arange(count, device=device)
        seen = torch.arange(longest, device=device)[None] <= positions[:, None]
        mask = torch.zeros(seen.shape, dtype=self._embedding.dtype, device=device)
        mask = mask.masked_fill_(~seen, float("-inf"))[:, None, None]
        cosine, sine = self._cosine[positions][:, None], self._sine[positions][:, None]
        x = F.embedding(torch.tensor(tokens, device=device), self._embedding)
        for index, layer in enumerate(self._layers):
            query, key, value = self._project(x, layer, cosine, sine)
            self._keys[index][lanes, :, positions] = key
            self._values[index][lanes, :, positions] = value
            # The query heads of one key head stand where a sequence of queries would: no key is copied.
            mixed = F.scaled_dot_product_attention(
                query.reshape(count, self._kv_heads, -1, self._size),
                self._keys[index][:count, :, :longest],
                self._values[index][:count, :, :longest],
                attn_mask=mask,
            )
            x = self._mix(x, mixed.reshape(count, -1), layer)
        self._positions = [position + 1 for position in self._positions]
        return self._logits(x)

    @torch.inference_mode()
    def drop(self, lane: int) -> None:
        """Free a lane; the last lane in use moves to its place."""
        last = len(self._positions) - 1
        for cache in (*self._keys, *self._values):
            if lane != last:
                cache[lane, :, : self._positions[last]] = cache[last, :, : self._positions[last]]
            # Masked positions still meet a weight of zero, and zero times a NaN left there would be NaN.
            cache[last].zero_()
        self._positions[lane] = self._positions[last]
        self._positions.pop()

    def _project(self, x: Tensor, layer: _Layer, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (n, heads, size), rotated keys and values (n, key-value heads, size)."""
        hidden = F.rms_norm(x, self._width, layer.norm_in, self._eps)
        heads = F.linear(hidden, layer.qkv).view(x.shape[0], -1, self._size)
        turned = heads[:, : self._heads + self._kv_heads]
        turned = torch.addcmul(turned * cosine, torch.roll(turned, self._size // 2, -1), sine)
        return turned[:, : self._heads], turned[:, self._heads :], heads[:, self._heads + self._kv_heads :]

    def _mix(self, x: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        """Output projection and gated MLP, each added to the residual stream (n, hidden)."""
        x = x + F.linear(attended, layer.out)
        gate, up = F.linear(F.rms_norm(x, self._width, layer.norm_mlp, self._eps), layer.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, self._width, self._norm, self._eps), self._head)

    def _reserve(self, length: int) -> None:
        room = self._keys[0].shape[2]
        if length > room:
            self._allocate(min(max(length, 2 * room), self._length))

    def _allocate(self, length: int) -> None:
        shape = (self._lanes, self._kv_heads, length, self._size)
        for caches in (self._keys, self._values):
            new = [self._embedding.new_zeros(shape) for _ in self._layers]
            for old, grown in zip(caches, new, strict=False):
                grown[:, :, : old.shape[2]] = old
            caches[:] = new


def log_probabilities(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probability of each id by its own row of logits, shape (ids, vocabulary); in fp32."""
    chosen = torch.tensor(list(ids), device=logits.device)
    return logits.float().log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]


def _weights(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        norm_in=layer.input_layernorm.weight.detach(),
        qkv=torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).detach(),
        out=attention.o_proj.weight.detach(),
        norm_mlp=layer.post_attention_layernorm.weight.detach(),
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach(),
        down=mlp.down_proj.weight.detach(),
    )


@torch.inference_mode()
def agrees(decoder: LlamaDecoder, model: Any) -> bool:
    """Whether the decoder gives the model's own logits, prompt and steps, up to rounding."""
    vocabulary = int(model.config.vocab_size)
    total = min(_CHECK_TOTAL, int(model.config.max_position_embeddings))
    ids = [(7 * i + 3) % vocabulary for i in range(total)]
    wanted = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    prompt = min(_CHECK_PROMPT, total)
    found = [decoder.admit(ids[:prompt])]
    found += [decoder.step([token])[0] for token in ids[prompt:]]
    decoder.drop(0)
    wanted, got = wanted[prompt - 1 :].float(), torch.stack(found).float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    return bool((wanted - got).abs().max() <= tolerance * (1 + wanted.abs().max()))
