"""Kernels against attention over one document, and what is chosen where."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.training import attention
from instructpt.training.attention import KERNELS, Layout, attend, by_blocks, choose

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def layout_of(sizes, kernel=by_blocks):
    bounds = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
    return Layout(kernel=kernel, sizes=sizes, bounds=bounds)


def inputs(tokens, heads=4, key_heads=2, size=8):
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, n, size, generator=draw, requires_grad=True) for n in (heads, key_heads, key_heads)]


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, window=st.sampled_from([None, 1, 3, 100]))
def test_blocks_are_the_dense_block_diagonal_mask(sizes, window):
    q, k, v = inputs(sum(sizes))
    found = by_blocks(q, k, v, layout_of(sizes), 0.3, window)
    segment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    at = torch.arange(sum(sizes))
    mask = (segment[:, None] == segment[None, :]) & (at[:, None] >= at[None, :])
    mask &= at[:, None] - at[None, :] < (window or len(at))
    rows = [x.transpose(0, 1)[None] for x in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*rows, attn_mask=mask, scale=0.3, enable_gqa=True)[0].transpose(0, 1)
    assert torch.allclose(found, wanted, atol=1e-6)
    grads = torch.autograd.grad(found.sum() + found.square().sum(), [q, k, v], retain_graph=True)
    again = torch.autograd.grad(wanted.sum() + wanted.square().sum(), [q, k, v])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, again, strict=True))


def test_the_interface_hands_the_kernel_a_flat_batch_and_the_models_wishes():
    seen = {}

    def kernel(query, key, value, layout, scale, window):
        seen.update(shapes=[tuple(x.shape) for x in (query, key, value)], scale=scale, window=window)
        return query

    query = torch.randn(2, 4, 5, 8)
    key = torch.randn(2, 2, 5, 8)
    out, weights = attend(
        torch.nn.Module(), query, key, key, None, scaling=0.5, sliding_window=3, dropout=0.0,
        document_layout=layout_of([5, 5], kernel),
    )  # fmt: skip
    assert weights is None
    assert torch.equal(out, query.transpose(1, 2))
    assert seen == {"shapes": [(10, 4, 8), (10, 2, 8), (10, 2, 8)], "scale": 0.5, "window": 3}


def test_what_no_kernel_does_is_refused():
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(ConfigError, match="softcap"):
        attend(torch.nn.Module(), x, x, x, None, softcap=30.0, document_layout=layout_of([2]))


def test_varlen_is_called_with_bounds_longest_segment_and_window(monkeypatch):
    """What only a GPU can compute is given the arguments that it documents."""
    from torch.nn.attention import varlen

    seen = {}

    def fake(query, key, value, cu_q, cu_k, max_q, max_k, **more):
        seen.update(bounds=cu_q.tolist(), same=cu_k is cu_q, longest=(max_q, max_k), **more)
        return query

    monkeypatch.setattr(varlen, "varlen_attn", fake)
    q, k, v = inputs(9)
    layout = layout_of([2, 4, 3])
    assert KERNELS["varlen"](q, k, v, layout, 0.5, None) is q
    assert seen == {
        "bounds": [0, 2, 6, 9], "same": True, "longest": (4, 4), "scale": 0.5, "window_size": (-1, 0),
        "enable_gqa": True,
    }  # fmt: skip
    assert layout.bounds.dtype == torch.int32
    KERNELS["varlen"](q, q, q, layout, None, 3)
    assert (seen["window_size"], seen["enable_gqa"]) == ((2, 0), False)


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "capability", "supported", "found"),
    [
        ("auto", "cpu", False, 0, True, "blocks"),
        ("auto", "cuda", True, 9, True, "varlen"),
        ("auto", "cuda", True, 7, True, "blocks"),
        ("auto", "cuda", False, 9, True, "blocks"),
        ("auto", "cpu", False, 0, False, "mask"),
        ("mask", "cpu", False, 0, True, "mask"),
        ("varlen", "cpu", True, 0, True, None),
        ("blocks", "cpu", True, 0, False, None),
    ],
)
def test_attention_follows_device_precision_and_architecture(
    monkeypatch, wanted, device, bf16, capability, supported, found
):
    monkeypatch.setattr(attention.torch.cuda, "get_device_capability", lambda _: (capability, 0))

    def chosen():
        return choose(wanted, device=torch.device(device), bf16=bf16, supported=supported)

    if found is None:
        with pytest.raises(ConfigError, match=f"attention='{wanted}'"):
            chosen()
    else:
        assert chosen() == found
