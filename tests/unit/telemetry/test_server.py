from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from instructpt.telemetry.progress import Progress
from instructpt.telemetry.server import serve


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: str = answer.read().decode()
        return body


def test_progress_and_metrics_show_the_same_figures() -> None:
    progress = Progress()
    with serve(progress, "synthesize", host="127.0.0.1", port=0) as port:
        progress.update(done=3, total=12, unit="shards", counts={"pairs": 812}, rates={"tokens_per_second": 90.5})
        figures = json.loads(get(port, "/progress"))
        metrics = get(port, "/metrics").splitlines()
    assert (figures["done"], figures["total"], figures["unit"]) == (3, 12, "shards")
    assert 'instructpt_synthesis_units_done{unit="shards"} 3.0' in metrics
    assert "instructpt_synthesis_pairs_total 812.0" in metrics
    assert "instructpt_synthesis_tokens_per_second 90.5" in metrics


def test_nothing_else_is_served() -> None:
    with serve(Progress(), "train", host="127.0.0.1", port=0) as port, pytest.raises(urllib.error.HTTPError) as error:
        get(port, "/etc/passwd")
    assert error.value.code == 404
    error.value.close()


def test_figures_that_are_not_given_stay() -> None:
    progress = Progress(clock=lambda: 0.0)
    progress.update(done=1, total=2, unit="steps", gauges={"loss": 3.5})
    progress.update(done=2)
    assert progress.snapshot() == {
        "done": 2, "total": 2, "unit": "steps", "per_second": 0.0, "counts": {}, "rates": {}, "gauges": {"loss": 3.5},
        "notes": {},
    }  # fmt: skip
