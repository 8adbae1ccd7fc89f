from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import TrainingError
from instructpt.training.parts import PARAM, Flat, HostCopy, Parts, write_part
from instructpt.training.pieces import Piece, by_name, spans


def joined(sizes: list[int], ranks: int) -> list[list[Piece]]:
    """As ZeRO 1 and 2 cut: parameters joined, filled up, and cut into equal parts."""
    part = -(-sum(sizes) // ranks)
    out: list[list[Piece]] = [[] for _ in range(ranks)]
    begin = 0
    for number, size in enumerate(sizes):
        for rank in range(ranks):
            first, last = max(begin, rank * part), min(begin + size, (rank + 1) * part)
            if first < last:
                place = {"start": first - begin, "offset": first - rank * part, "size": last - first}
                out[rank].append(Piece(name=f"p{number}", shape=(size,), **place))
        begin += size
    return out


def each(sizes: list[int], ranks: int) -> list[list[Piece]]:
    """As ZeRO 3 cuts: each parameter into equal parts, the last one filled up."""
    out: list[list[Piece]] = []
    for rank in range(ranks):
        offset, mine = 0, []
        for number, size in enumerate(sizes):
            part = -(-size // ranks)
            held = max(0, min(part, size - rank * part))
            place = {"start": rank * part, "offset": offset, "size": held}
            mine.append(Piece(name=f"p{number}", shape=(size,), **place))
            offset += part
        out.append(mine)
    return out


CUTS = st.sampled_from([joined, each])


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), ranks=st.integers(1, 5), cut=CUTS, data=st.data())
def test_any_range_is_made_of_each_element_once_whatever_cut_it(sizes, ranks, cut, data):
    held = by_name(cut(sizes, ranks))
    for number, size in enumerate(sizes):
        start = data.draw(st.integers(0, size))
        wanted = data.draw(st.integers(0, size - start))
        found = list(spans(held[f"p{number}"], start, wanted, name=f"p{number}"))
        elements = []
        for span in found:
            assert span.at == len(elements)
            piece = next(p for s, p in held[f"p{number}"] if s == span.source)
            elements += [piece.start + span.offset - piece.offset + i for i in range(span.size)]
        assert elements == list(range(start, start + wanted))


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), ranks=st.integers(2, 5), cut=CUTS, data=st.data())
def test_a_missing_part_is_noticed(sizes, ranks, cut, data):
    all_ = cut(sizes, ranks)
    gone = data.draw(st.integers(0, ranks - 1))
    lost = [p for p in all_[gone] if p.size]
    left = by_name(pieces for rank, pieces in enumerate(all_) if rank != gone)
    for piece in lost:
        with pytest.raises(TrainingError, match=f"no element .* of {piece.name}"):
            list(spans(left.get(piece.name, []), piece.start, piece.size, name=piece.name))


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    before=st.tuples(CUTS, st.integers(1, 4)),
    after=st.tuples(CUTS, st.integers(1, 4)),
)
def test_what_some_ranks_wrote_others_read(sizes, before, after, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    whole = {f"p{i}": torch.randn(n) for i, n in enumerate(sizes)}
    paths = []
    for rank, pieces in enumerate(before[0](sizes, before[1])):
        length = max((p.offset + p.size for p in pieces), default=0)
        tensors = {key: torch.zeros(length) for key in (PARAM, "exp_avg")}
        for piece in pieces:
            values = whole[piece.name][piece.start : piece.start + piece.size]
            tensors[PARAM][piece.offset : piece.offset + piece.size] = values
            tensors["exp_avg"][piece.offset : piece.offset + piece.size] = -values
        flats = [Flat(tensors=tensors, pieces=tuple(pieces))]
        paths.append(folder / f"{rank}")
        write_part(paths[-1], HostCopy(flats).take(flats), {f"random.{rank}": torch.tensor([rank], dtype=torch.uint8)})
    parts = Parts(paths)
    for pieces in after[0](sizes, after[1]):
        for piece in (p for p in pieces if p.size):
            read = parts.read("exp_avg", piece.name, piece.start, piece.size)
            assert torch.equal(read, -whole[piece.name][piece.start : piece.start + piece.size])
    assert {name: parts.whole(PARAM, name).tolist() for name in parts.names} == {
        n: t.tolist() for n, t in whole.items()
    }
    assert sorted(parts.small("random.")) == [str(rank) for rank in range(before[1])]


def test_a_part_is_a_safetensors_file_with_the_hash_that_was_told(tmp_path):
    from safetensors.torch import load_file

    from instructpt.storage.hashing import sha256_of_file

    tensors = {PARAM: torch.arange(5.0), "exp_avg": torch.ones(5)}
    flat = Flat(tensors=tensors, pieces=(Piece(name="w", shape=(2, 2), start=0, offset=0, size=4),))
    entry = write_part(tmp_path / "part", [flat], {})
    assert (entry.sha256, entry.bytes) == (sha256_of_file(tmp_path / "part"), (tmp_path / "part").stat().st_size)
    assert torch.equal(load_file(tmp_path / "part")["param.0"], tensors[PARAM])
    assert Parts([tmp_path / "part"]).whole(PARAM, "w").tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_copy_uses_the_same_memory_again_and_keeps_what_was():
    live = torch.zeros(4)
    flats = [Flat(tensors={PARAM: live}, pieces=())]
    host = HostCopy(flats)
    first = host.take(flats)[0].tensors[PARAM]
    live += 1
    assert first.tolist() == [0.0] * 4
    assert host.take(flats)[0].tensors[PARAM].data_ptr() == first.data_ptr()
    assert (first.tolist(), host.bytes) == ([1.0] * 4, 16)
