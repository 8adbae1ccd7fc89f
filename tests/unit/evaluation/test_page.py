from __future__ import annotations

import re
from typing import Any

from instructpt.evaluation.metrics import METRICS
from instructpt.evaluation.page import render_page
from instructpt.evaluation.plots import loss_curves, metric_bars, pairs_histogram, thin
from instructpt.evaluation.verdict import give_verdict

EVIL = "<script>alert('x')</script> & \"quotes\""


def report(**changes: Any) -> dict[str, Any]:
    """A report in which every text that comes from outside is hostile."""
    value = {"value": 2.0, "stderr": 0.1, "interval": [1.8, 2.2], "n": 10, "documents": 10, "seeds": {}}
    base: dict[str, Any] = {
        "name": EVIL,
        "baseline": "vanilla",
        "arms": {EVIL: {"runs": [], "metrics": {}, "train_tokens": None}},
        "metrics": {
            "bits-per-byte": {
                "title": "Held-out text", "about": "a", "unit": "bits/byte", "direction": "lower", "informative": False,
                "reason": EVIL, "values": {EVIL: value, "untrained": value}, "gains": {},
            }
        },
        "gate": {"verdict": "Failed", "reason": EVIL},
        "evaluation": {"counts": {"documents_used": 3, "dropped_x": 2}},
        "questions": [
            {"question": EVIL, "answer": EVIL, "predictions": {EVIL: {"answer": EVIL, "right": True}}},
        ],
        "corpus": {"counts": {"documents": 3}, "split": {"train": 1.0}},
        "synthesis": {
            "quality": {},
            "example": {
                "id": EVIL, "text": f"{EVIL} What? {EVIL}", "templates": [],
                "shots": [{"document": EVIL, "verdict": "augmented",
                           "pairs": [{"question": "What?", "answer": EVIL, "kind": "free"}]}],
            },
        },
        "synthesizer": {},
        "lineage": {EVIL: {"kind": EVIL, "digest": "sha256:00", "inputs": {}}},
        "absent": [EVIL],
        "versions": {"instructpt": EVIL},
    }  # fmt: skip
    base |= changes
    return base | {"verdict": give_verdict(base)}


def test_everything_from_outside_is_escaped() -> None:
    hostile = report()
    page = render_page(hostile, {"metric-bits-per-byte": bars(hostile)}, notes=[EVIL])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10
    assert 'title="&lt;script' in page


def bars(hostile: dict[str, Any]) -> str:
    return metric_bars("bits-per-byte", hostile["metrics"]["bits-per-byte"], list(hostile["arms"]), {EVIL: 0})


def test_the_page_is_a_function_of_the_report() -> None:
    assert render_page(report(), {}) == render_page(report(), {})


def test_figures_are_the_same_each_time_hold_no_address_and_take_the_pages_colours() -> None:
    rows = [{"step": i, "tokens": 10, "loss": 5.0 - i / 100} for i in range(300)]
    one, two = (loss_curves({"a": rows, "b$x$": rows}, {"a": 0, "b$x$": 1}) for _ in range(2))
    assert one == two
    assert "http" not in one
    assert "xmlns" not in one
    assert "var(--series-0)" in one
    assert "var(--ink)" in one
    assert not re.search(r"#[0-9a-f]{6}\b", one)
    assert "b$x$" in one


def test_histograms_of_any_shape() -> None:
    assert "<svg" in pairs_histogram({"0": 3})
    assert "<svg" in pairs_histogram({"0": 3, "40": 1})


def test_thinning_keeps_the_mean_and_bounds_the_points() -> None:
    x, y = thin(list(range(1000)), [2.0] * 1000, 100)
    assert len(x) == 100
    assert set(y) == {2.0}
    assert x[0] == 4.5
    assert thin([], []) == ([], [])


def test_the_table_of_metrics_names_a_direction_for_every_task() -> None:
    from instructpt.api.v1alpha1.evaluationjob import DEFAULT_TASKS

    assert tuple(METRICS) == DEFAULT_TASKS
    assert METRICS["bits-per-byte"].gain(1.0, 3.0) == 2.0
    assert METRICS["qa-exact-match"].gain(1.0, 3.0) == -2.0
