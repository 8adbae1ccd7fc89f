from __future__ import annotations

import json
from typing import Any

import filters as benchmark
import pytest

from tests.unit.benchmarks.conftest import ROOT

RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "filters.json").read_text())
PAGE = (ROOT / "docs" / "user-guides" / "filters.md").read_text()


def test_the_page_shows_the_committed_figures() -> None:
    for row in RESULT["recall_at_0.8"]:
        assert f"| {row['similarity']:.2f} | {row['found']:.2f} | {row['predicted']:.2f} |" in PAGE
    assert f"{RESULT['comparison']['above_base_mb']:.0f} MB more" in " ".join(PAGE.split())
    assert f"{RESULT['comparison']['row_bytes']} bytes a document" in PAGE
    groundedness = RESULT["groundedness"]
    assert f"{groundedness['answers']:,} free answers" in PAGE
    for bound, share in groundedness["dropped"]["other"].items():
        assert f"{share:.0%}".replace("%", " %") + f" at {bound}" in " ".join(PAGE.split())


def test_what_is_stated_is_found_and_a_million_documents_fit_the_stated_memory() -> None:
    for row in RESULT["recall_at_0.8"]:
        assert row["found"] == pytest.approx(row["predicted"], abs=0.1)
        assert row["similarity"] < 0.8 or row["found"] >= 0.9
    compared = RESULT["comparison"]
    assert compared["documents"] == 1_000_000
    # 8 bytes a document and 128 MiB at most for a comparison.
    assert compared["above_base_mb"] < 8 + 135


def test_a_tenth_of_the_rows_are_duplicates_and_are_found() -> None:
    small = benchmark.compare(20_000)
    # Each block of 10,000 has a tenth that are one: all but one of them go.
    assert small["left_out"] == 2 * 999
    assert RESULT["comparison"]["left_out"] / RESULT["comparison"]["documents"] == pytest.approx(0.1, abs=0.001)
