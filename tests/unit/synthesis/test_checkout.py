"""Templates from a path: a pattern file of the reference's shape, with words of our own, in place of a checkout.

That the texts are the reference's own is proved against a real checkout, in ``tests/integration``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pattern_file import FILE, write

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, Shot, make_pair, templates
from instructpt.synthesis.model import CONCLUSION_MARK, STEP_BY_STEP, with_options

TWO = (Pair("q1", "a1"), Pair("q2", "a2"))
SHAPES = {"classic", "dialog", "numbered", "inline", "next-turn"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "LMOps")


def every(used: templates.Templates, chain: list[Shot], number: int = 300) -> list[templates.Rendered]:
    return [used.render_with_ids(chain, seed) for seed in range(number)]


def of_shape(used: templates.Templates, chain: list[Shot], shape: str) -> templates.Rendered:
    return next(found for found in every(used, chain, 2000) if found.template_ids[0] == shape)


@pytest.mark.parametrize("ups", [0, 1, 2, 3])
def test_a_checkout_is_found_by_any_of_its_paths(path: Path, ups: int) -> None:
    given = str([path, *path.parents][ups])
    used = templates.load(given)
    assert isinstance(used, templates.Templates)
    assert (used.source, used.compat) == (given, "fixed")
    assert used.digest == templates.load(str(path), compat="reference").digest


def test_another_content_is_another_digest(path: Path) -> None:
    first = templates.load(str(path))
    path.write_text(FILE.replace('"then"', '"next"'), encoding="utf-8")
    second = templates.load(str(path))
    assert first.digest != second.digest
    assert "next" in of_shape(second, [Shot("d", TWO)], "classic").text


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_shapes(path: Path, compat: str) -> None:
    used = templates.load(str(path), compat=compat)
    chain = [Shot("d", (make_pair("q1", "a1"), make_pair(f"q2{STEP_BY_STEP}", f"why.{CONCLUSION_MARK}a2")))]
    found = every(used, chain, 2000)
    assert {rendered.template_ids[0] for rendered in found} == SHAPES
    if compat == "fixed":
        expected = {
            "numbered": "I d: 0.q1 1.q2 / T  0.a1 1.why so a2",
            "inline": "d q1=a1 ; q2=a2",
        }
        for shape, text in expected.items():
            assert of_shape(used, chain, shape).text == text
        assert of_shape(used, chain, "next-turn").text.startswith("d || I ")
        assert of_shape(used, chain, "next-turn").text.endswith(" / T U:q2 V:why so a2")
        texts = {rendered.text for rendered in found if rendered.template_ids[0] == "classic"}
        pairs = "I q1 / T a1 || I q2 / T why so a2"
        assert texts == {f"see d then || {pairs}", f"told {pairs} of d"}


def test_a_collection_goes_on_with_the_speakers_of_its_last_dialog(path: Path) -> None:
    used = templates.load(str(path))
    chains = [[Shot("one", (Pair("q", "a"),))], [Shot("two", TWO)]]
    # One pair leaves only classic and dialog, so a draw between 80 and 85 % gives the two chains different shapes.
    seed = next(
        seed
        for seed in range(999)
        if [used.render_with_ids(chain, seed).template_ids[0] for chain in chains] == ["classic", "dialog"]
    )
    (first,), (second,) = used.render_collection(chains, seed)
    assert first.template_ids[0] == "classic"
    assert "U:q V:a" in first.text
    assert "U:q1 V:a1" in second.text
    assert "I q / T a" in used.render(chains[0], seed)


def test_reference_splits_off_documents_without_pairs(path: Path) -> None:
    used = templates.load(str(path), compat="reference")
    lost = (make_pair("q\nOptions:\n- a\n- b", "c"),)
    assert [row.text for row in used.render_rows([Shot("raw")], 1)] == ["", "raw"]
    rows = used.render_rows([Shot("one", TWO), Shot("two", lost), Shot("three", lost)], 1)
    assert [row.text for row in rows[1:]] == ["three", "two"]
    assert rows[0].dropped == {"gold-not-in-options": 2}
    assert used.render([Shot("raw")], 1) == "raw"


def test_fixed_loses_nothing(path: Path) -> None:
    used = templates.load(str(path))
    offered = [f"o{index};" for index in range(40)]
    pairs = (
        make_pair("q0\nOptions:\n- a\n- b", "missing"),
        make_pair(f"q1{STEP_BY_STEP}", "no conclusion"),
        make_pair("q2\nOptions:\n- a\nOptions:\n- b", "b"),
        make_pair(with_options("q3", offered), "o39;"),
        make_pair("q4\nOptions:\n- a\n- b", "neither"),
        *(Pair(f"more{index};", f"answer{index};") for index in range(30)),
    )
    chain = [Shot("raw"), Shot("full", pairs)]
    for rendered in every(used, chain):
        assert not rendered.dropped
        assert sum(rendered.repaired.values()) == 5
        for text in ("raw", "full", "missing", "no conclusion", "neither", *offered, "more29;", "answer29;"):
            assert text in rendered.text
    assert used.render([Shot("a"), Shot("b")], 1) == "a\n\nb"
    assert used.render([], 1) == ""


def test_fixed_draws_no_pattern_without_a_place_for_the_answer(path: Path) -> None:
    chain = [Shot("d", (Pair("q", "THE ANSWER"),))]
    assert all("THE ANSWER" in found.text for found in every(templates.load(str(path)), chain))
    assert any("THE ANSWER" not in found.text for found in every(templates.load(str(path), "reference"), chain))


def test_a_path_without_a_pattern_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"templates=.*use templates: native, or the path"):
        templates.load(str(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("import dataclasses", "import nothing_of_that_name", "ModuleNotFoundError"),
        ("READ_END_STRING_CANDIDATES", "OTHER", "defines no READ_END_STRING_CANDIDATES"),
        ('UNANSWERABLE_OPTIONS = ["neither"]', "UNANSWERABLE_OPTIONS = []", "UNANSWERABLE_OPTIONS is empty"),
        ('"qa_w_cot"', '"other"', "qa_w_cot"),
        ("{cot} so {answer}", "{cot} so {result}", "unknown placeholders: result"),
        ("{cot} so {answer}", "{cot} so {answer", "unbalanced braces"),
        ('[["U:", "V:"]]', '[["U:"]]', "fewer than two labels"),
        ("    testing_output: str\n", "", "has no attribute 'testing_output'"),
    ],
)
def test_a_file_that_is_not_the_references(path: Path, old: str, new: str, fault: str) -> None:
    path.write_text(FILE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match="this is not the reference's pattern file") as refused:
        templates.load(str(path))
    assert fault in str(refused.value)
