"""The loss in pieces is the loss from all logits at once, and holds no more than a piece of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from instructpt.training import losses


def measured(loss, hidden, labels, weight, bias):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    value = loss(leaves[0], labels, leaves[1], leaves[2])
    (value * 0.7).backward()
    return float(value.detach()), [x.grad for x in leaves]


@settings(max_examples=20, deadline=None)
@given(targets=st.integers(1, 40), rows=st.integers(1, 16), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_all_logits_at_once(targets, rows, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=draw) for s in ((targets, 6), (50, 6), (50,)))
    labels = torch.randint(0, 50, (targets,), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.CHUNK_LOGITS, "cpu", rows * 50)
        found, grads = measured(losses.chunked, hidden, labels, weight, bias)
    wanted, again = measured(losses.whole, hidden, labels, weight, bias)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, again, strict=True))


def test_in_bf16_it_is_as_near_to_fp32_as_all_logits_at_once(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(64, 32, generator=draw), torch.randn(100, 32, generator=draw)
    labels = torch.randint(0, 100, (64,), generator=draw)
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", 700)
    wanted, (_, exact, _) = measured(losses.whole, hidden, labels, weight, torch.zeros(100))
    half = [x.bfloat16() for x in (hidden, weight, torch.zeros(100))]
    found, (_, ours, _) = measured(losses.chunked, half[0], labels, half[1], half[2])
    _, (_, theirs, _) = measured(losses.whole, half[0], labels, half[1], half[2])
    assert ours.dtype == torch.bfloat16
    assert found == pytest.approx(wanted, rel=1e-2)
    assert (ours.float() - exact).norm() <= 1.1 * (theirs.float() - exact).norm()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in made)])
        return out


@pytest.mark.parametrize(("loss", "most"), [(losses.chunked, 40 * 8), (losses.whole, 300 * 40)])
def test_no_operation_makes_more_than_a_piece_of_the_logits(monkeypatch, loss, most):
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", 40 * 8)
    hidden, weight = torch.randn(300, 1, requires_grad=True), torch.randn(40, 1, requires_grad=True)
    labels = torch.randint(0, 40, (300,))
    with Largest() as seen:
        loss(hidden, labels, weight).backward()
    assert seen.elements == most


def test_a_head_gives_logits_or_the_loss():
    head = torch.nn.Linear(4, 9, bias=False)
    hidden, labels = torch.randn(5, 4), torch.tensor([1, 2, 3, 4, 8])
    before = head(hidden)
    assert losses.install(head)
    assert torch.equal(head(hidden), before)
    wanted = torch.nn.functional.cross_entropy(before, labels, reduction="sum")
    assert float(head(hidden, labels).detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert not losses.install(torch.nn.Identity())


def test_without_gradients_nothing_is_kept():
    head = torch.nn.Linear(4, 9, bias=False)
    with torch.no_grad():
        loss = losses.chunked(torch.randn(5, 4), torch.zeros(5, dtype=torch.long), head.weight)
    assert loss.grad_fn is None
