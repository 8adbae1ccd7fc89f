from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import ReportRun, ResolvedInput, RunSpec, StageOutput, StageResult
from instructpt.corpus.manifest import load_manifest
from instructpt.errors import ConfigError
from instructpt.evaluation import report
from instructpt.evaluation.table import render_table
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext

Context = Callable[..., WorkerContext]


def stage(step: str, kind: str, place: ResolvedInput | StageResult, **changes: Any) -> StageOutput:
    return StageOutput(step=step, kind=kind, uri=place.uri, digest=place.digest, **changes)


@pytest.fixture
def stages(
    corpus: ResolvedInput, augmented: ResolvedInput, make_model: Callable[..., ResolvedInput],
    spec_of: Callable[..., RunSpec], evaluate: Callable[[RunSpec], StageResult],
) -> list[StageOutput]:  # fmt: skip
    instruct, vanilla = make_model(1, steps=20), make_model(2, steps=20)
    scores = evaluate(spec_of([("instruct", 1, instruct), ("vanilla", 1, vanilla)]))
    return [
        stage("corpus", "inspect", corpus),
        stage("synthesis", "synthesize", augmented),
        stage("arm-instruct", "train", instruct, arm="instruct", seed=1),
        stage("arm-vanilla", "train", vanilla, arm="vanilla", seed=1),
        stage("evaluation", "evaluate", scores),
    ]


def spec_for(folder: Path, stages: list[StageOutput]) -> RunSpec:
    return RunSpec(
        verb="finalize", owner_kind="InstructionPretraining", owner_name="quickstart", step="report",
        code_version="test", output=StorageSpec(uri=str(folder)), report=ReportRun(stages=tuple(stages)),
    )  # fmt: skip


class Page(HTMLParser):
    """Every attribute and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(report_: dict[str, Any], width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_table(report_))
    return out.getvalue()


def test_a_whole_run(stages: list[StageOutput], context: Context, tmp_path: Path) -> None:
    result = report.finalize(spec_for(tmp_path / "report", stages), context())
    data = json.loads((tmp_path / "report/report.json").read_bytes())
    assert set(data["arms"]) == {"instruct", "vanilla"}
    for arm in data["arms"].values():
        assert arm["train_tokens"] == 16_000
        assert arm["train_steps"] == 20
        assert (arm["unique_documents"], arm["repeats"]) == (80, 1.5)
        assert arm["parameters"] == 400 * 48 * 2 + 2 * (4 * 48 * 48 + 3 * 48 * 96 + 2 * 48) + 48
        assert set(arm["metrics"]["bits-per-byte"]) >= {"value", "stderr", "n"}
    assert set(data["untrained"]["metrics"]) == {"bits-per-byte", "answer-bits-per-byte", "qa-exact-match"}
    assert set(data["majority"]["metrics"]) == {"qa-exact-match"}
    assert data["metrics"]["bits-per-byte"]["direction"] == "lower"
    assert data["synthesis"]["quality"]["pairs"] > 12
    assert data["synthesis"]["example"]["shots"][0]["pairs"]
    assert set(data["lineage"]) == {s.step for s in stages}
    assert "At an equal 16k training tokens" in data["verdict"]["headline"]
    assert any("small run" in limit for limit in data["verdict"]["limits"])
    assert result.scores["instruct/bits-per-byte"] == data["arms"]["instruct"]["metrics"]["bits-per-byte"]["value"]
    manifest = load_manifest(open_store(str(tmp_path / "report")), digest=result.digest)
    assert [f.path for f in manifest.files] == ["losses.csv", "report.json"]
    rows = (tmp_path / "report/losses.csv").read_text().splitlines()
    assert rows[0] == "model,arm,seed,step,loss,learning_rate,grad_norm,tokens,loss_tokens"
    assert len(rows) == 41
    shown = text_of(data)
    for word in ("instruct", "vanilla", "untrained", "majority", "bits-per-byte", "16,000", "does not show"):
        assert word in shown


def test_the_page_stands_alone(stages: list[StageOutput], context: Context, tmp_path: Path) -> None:
    report.finalize(spec_for(tmp_path / "report", stages), context())
    html = (tmp_path / "report/report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"(https?:)?//[a-z]", html)
    assert "@import" not in html
    assert all(value is None or value.startswith("#") for name, value in page.attributes if name in ("href", "src"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for figure in ("loss", "throughput", "pairs", "metric-bits-per-byte"):
        assert f'aria-label="{figure}"' in html
    assert 'mark class="question"' in html
    assert 'mark class="answer"' in html


def test_the_report_is_idempotent_and_only_the_throughput_may_differ(
    stages: list[StageOutput], context: Context, tmp_path: Path
) -> None:
    one = report.finalize(spec_for(tmp_path / "one", stages), context())
    model = Path(next(s.uri for s in stages if s.arm == "vanilla"))
    (model / "throughput.jsonl").write_text('{"step": 0, "tokens_per_second": 1}\n')
    two = report.finalize(spec_for(tmp_path / "two", stages), context())
    assert one.digest == two.digest
    for name in ("report.json", "losses.csv", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert report.finalize(spec_for(tmp_path / "two", stages), context()) == two


@pytest.mark.parametrize(
    "kept", [[], ["corpus"], ["arm-vanilla"], ["evaluation"], ["corpus", "synthesis", "arm-instruct"]]
)
def test_a_report_of_part_of_a_run(
    kept: list[str], stages: list[StageOutput], context: Context, tmp_path: Path
) -> None:
    result = report.finalize(spec_for(tmp_path / "report", [s for s in stages if s.step in kept]), context())
    data = json.loads((tmp_path / "report/report.json").read_bytes())
    assert data["verdict"]["headline"]
    assert result.counts == {"stages": len(kept), "absent": 0}
    assert text_of(data)
    page = Page()
    page.feed((tmp_path / "report/report.html").read_text())
    assert page.open == []


def test_a_stage_that_left_nothing_is_named(stages: list[StageOutput], context: Context, tmp_path: Path) -> None:
    gone = stages[2].model_copy(update={"uri": str(tmp_path / "nowhere")})
    result = report.finalize(spec_for(tmp_path / "report", [gone, *stages[3:]]), context())
    data = json.loads((tmp_path / "report/report.json").read_bytes())
    assert data["absent"] == ["arm-instruct"]
    assert result.counts["absent"] == 1
    assert data["arms"]["instruct"]["train_tokens"] is None
    assert data["arms"]["instruct"]["metrics"]
    assert "No output was found of: arm-instruct" in text_of(data)


def test_a_stage_that_was_made_again_is_refused(stages: list[StageOutput], context: Context, tmp_path: Path) -> None:
    other = stages[0].model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(ConfigError, match="expected sha256:0000"):
        report.finalize(spec_for(tmp_path / "report", [other]), context())
    assert not (tmp_path / "report").exists()


def test_without_matplotlib_there_are_no_figures_but_a_note(
    stages: list[StageOutput], context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "instructpt.evaluation.plots", raising=False)
    monkeypatch.delattr("instructpt.evaluation.plots", raising=False)
    report.finalize(spec_for(tmp_path / "report", stages), context())
    html = (tmp_path / "report/report.html").read_text()
    assert "<svg" not in html
    assert "instructpt[evaluation]" in html
