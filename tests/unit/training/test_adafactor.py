"""Adafactor in pieces is torch's Adafactor on whole parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.training.adafactor import MOMENTS, Adafactor
from instructpt.training.pieces import Piece

SHAPES = {"matrix": (5, 7), "vector": (6,), "experts": (2, 3, 4), "row": (1, 9)}


def drawn(seed):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=draw) for name, shape in SHAPES.items()}


def wanted_after(steps, decay):
    """torch's own, on whole parameters."""
    params = {name: torch.nn.Parameter(value) for name, value in drawn(0).items()}
    optimizer = torch.optim.Adafactor(params.values(), lr=0.02, weight_decay=decay, eps=(1.19e-7, 1e-3), foreach=False)
    for step in range(steps):
        for name, grad in drawn(step + 1).items():
            params[name].grad = grad
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}


class Rank:
    """A rank's part of everything, flat: all parameters one after the other, cut at two places."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.flat = torch.nn.Parameter(self.cut(drawn(0)))
        self.optimizer = Adafactor([{"params": [self.flat], "weight_decay": 0.1}], lr=0.02)

    def cut(self, values):
        return torch.cat([values[name].reshape(-1) for name in SHAPES])[self.begin : self.end].clone()

    def pieces(self):
        out, at = [], 0
        for name, shape in SHAPES.items():
            size = torch.Size(shape).numel()
            first, last = max(at, self.begin), min(at + size, self.end)
            found = max(0, last - first)
            start, offset = (first - at, first - self.begin) if found else (0, 0)
            out.append(Piece(name=name, shape=shape, start=start, offset=offset, size=found))
            at += size
        return {id(self.flat): out}


def run_together(ranks, steps, moments=None, first=0):
    """Every rank in a thread of its own, with a sum that waits for all of them."""
    import threading

    barrier, shared = threading.Barrier(len(ranks)), {}

    def total_of(number):
        def total(value):
            shared[number] = value.clone()
            barrier.wait()
            out = sum(shared[n] for n in range(len(ranks)))
            barrier.wait()
            value.copy_(out)
            return value

        return total

    found = {}

    def work(number, rank):
        total = total_of(number) if len(ranks) > 1 else None
        rank.optimizer.place(rank.pieces(), SHAPES, total, torch.device("cpu"), steps=first)
        for tensor, pieces, _ in rank.optimizer.held() if moments else []:
            for piece in pieces:
                part = moments[piece.name][piece.start : piece.start + piece.size]
                tensor.view(-1)[piece.offset : piece.offset + piece.size] = part
        for step in range(first, first + steps):
            rank.flat.grad = rank.cut(drawn(step + 1))
            rank.optimizer.step()
        found[number] = rank.optimizer.held()

    threads = [threading.Thread(target=work, args=item) for item in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[n] for n in range(len(ranks))]


def whole(ranks):
    return torch.cat([rank.flat.detach() for rank in ranks])


def flat_of(values):
    return torch.cat([values[name].reshape(-1) for name in SHAPES])


TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES.values())


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, TOTAL), max_size=3))
def test_however_it_is_cut_the_update_is_that_of_whole_parameters(cuts):
    bounds = [0, *sorted(cuts), TOTAL]
    ranks = [Rank(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    run_together(ranks, 3)
    assert torch.allclose(whole(ranks), flat_of(wanted_after(3, 0.1)), atol=1e-5)


def gathered(found):
    """What the ranks hold together, by name: copies once, the rest put together."""
    out = {}
    for held in found:
        for tensor, pieces, is_copy in held:
            for piece in pieces:
                whole = out.setdefault(piece.name, torch.full((torch.Size(piece.shape).numel(),), torch.nan))
                part = tensor.view(-1)[piece.offset : piece.offset + piece.size]
                if is_copy and not whole.isnan().any():
                    assert torch.equal(part, whole), "every rank holds the same"
                whole[piece.start : piece.start + piece.size] = part
    assert not any(value.isnan().any() for value in out.values())
    return out


def test_it_goes_on_from_its_moments_on_another_number_of_ranks():
    two = [Rank(0, 20), Rank(20, TOTAL)]
    moments = gathered(run_together(two, 2))
    assert {key.split("/")[0] for key in moments} == set(MOMENTS)
    one = [Rank(0, TOTAL)]
    one[0].flat.data.copy_(whole(two))
    run_together(one, 2, moments=moments, first=2)
    assert torch.allclose(whole(one), flat_of(wanted_after(4, 0.1)), atol=1e-5)


def test_moments_are_of_the_size_of_rows_and_columns():
    assert {name: value.numel() for name, value in gathered(run_together([Rank(0, 9), Rank(9, TOTAL)], 1)).items()} == {
        "row/matrix": 5, "column/matrix": 7, "square/vector": 6, "row/experts": 6, "column/experts": 8,
        "row/row": 1, "column/row": 9,
    }  # fmt: skip


def test_before_it_knows_what_the_tensors_hold_it_does_nothing():
    rank = Rank(0, TOTAL)
    rank.flat.grad = torch.ones_like(rank.flat)
    before = rank.flat.detach().clone()
    rank.optimizer.step()
    assert torch.equal(rank.flat, before)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_is_of_the_group(decay):
    rank = Rank(0, TOTAL)
    rank.optimizer.param_groups[0]["weight_decay"] = decay
    run_together([rank], 1)
    assert torch.allclose(whole([rank]), flat_of(wanted_after(1, decay)), atol=1e-5)
