from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.cli.console import duration, quantity, size
from instructpt.cli.panel import counts_text, eta_seconds, figures_text
from instructpt.cli.results import mark_pairs
from instructpt.errors import EnvironmentNotReadyError
from instructpt.local.changes import has_changed, inputs_of
from instructpt.local.executor import describe_exit
from instructpt.local.folder import RunFolder, StageState, storage_locked, write_atomically
from instructpt.plan.progress import merge_progress
from instructpt.storage import open_store

FIGURES = {
    "done": 3, "total": 4, "unit": "shards", "counts": {"pairs": 200}, "gauges": {},
    "rates": {"tokens_per_second": 400.0},
}  # fmt: skip


def test_progress_of_replicas_adds_rates_and_takes_the_ledgers_totals() -> None:
    other = {**FIGURES, "done": 2, "counts": {"pairs": 235}, "rates": {"tokens_per_second": 500.0}}
    merged = merge_progress([FIGURES, other])
    assert (merged["done"], merged["total"]) == (3, 4)
    assert merged["counts"] == {"pairs": 435}
    assert merged["rates"] == {"tokens_per_second": 900.0}
    assert figures_text(merged) == "3/4 shards, 435 pairs, 900 tok/s"
    assert eta_seconds(merged, 63.0) == pytest.approx(21.0)


def test_counts_are_shown_in_a_fixed_order() -> None:
    assert counts_text({"pairs": 435, "documents": 200, "other": 1}) == "200 documents, 435 pairs"


@pytest.mark.parametrize(
    ("code", "said"), [(1, "exit code 1"), (-9, "killed by SIGKILL (out of memory?)"), (-15, "killed by SIGTERM")]
)
def test_exit_codes_are_described(code: int, said: str) -> None:
    assert describe_exit(code) == said


def test_state_survives_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    (tmp_path / "state").mkdir()
    state = StageState(key="k", output={"uri": "x"}, attempts=2, result={"uri": "x", "digest": "sha256:0"})
    folder.save_state("synthesis", state)
    assert folder.load_state("synthesis") == state
    assert folder.load_state("corpus") is None
    assert folder.states() == {"synthesis": state}


def test_a_damaged_state_counts_as_absent_and_an_old_one_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(path=tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "old.json").write_text('{"key": "k", "output": {"uri": "x"}}')
    (tmp_path / "state" / "half.json").write_text('{"key": "k", "outp')
    (tmp_path / "state" / "list.json").write_text("[1]")
    (tmp_path / "state" / "bytes.json").write_bytes(b"\xff\x00")
    assert folder.states() == {"old": StageState(key="k", output={"uri": "x"})}
    assert folder.load_state("half") is None
    assert "half.json cannot be understood" in caplog.text


def test_the_sample_is_kept_until_a_full_run(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    assert folder.sample is None
    folder.keep_sample(20)
    assert folder.sample == 20
    folder.keep_sample(None)
    assert folder.sample is None
    assert list(tmp_path.iterdir()) == []


def test_only_the_copies_of_a_report_are_dropped(tmp_path: Path) -> None:
    for name in ("report.json", "report.html", "loss.png", "scores.csv", "spec.yaml", "run.log", "lock"):
        (tmp_path / name).touch()
    (tmp_path / "report.d").mkdir()
    RunFolder(path=tmp_path).drop_report()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "report.d", "run.log", "spec.yaml"]


def test_a_look_at_the_lock_does_not_refuse_a_run(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    (tmp_path / "lock").touch()
    looking = (tmp_path / "lock").open("a+")
    fcntl.flock(looking, fcntl.LOCK_SH)
    ended = threading.Timer(0.25, looking.close)
    ended.start()
    with folder.locked():
        assert folder.running_pid() == os.getpid()
    ended.join()


def test_the_lock_of_a_storage_is_no_object(tmp_path: Path) -> None:
    with storage_locked(f"file://{tmp_path}/data"):
        assert list(open_store(str(tmp_path / "data")).list()) == []
        with pytest.raises(EnvironmentNotReadyError, match="is in use by process"), storage_locked(f"{tmp_path}/data"):
            pass
    with storage_locked("s3://bucket/prefix"):
        pass


def test_a_copied_run_folder_is_no_changed_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CorpusSource.model_validate({"uri": "corpus/*.jsonl"})
    for place in ("one", "two"):
        (tmp_path / place / "corpus").mkdir(parents=True)
        (tmp_path / place / "corpus" / "a.jsonl").write_text('{"text": "x"}')
    monkeypatch.chdir(tmp_path / "one")
    before = inputs_of(source)
    assert before is not None
    assert not has_changed(source, before)
    monkeypatch.chdir(tmp_path / "two")
    assert not has_changed(source, before)
    (tmp_path / "one" / "corpus" / "a.jsonl").write_text('{"text": "y"}')
    assert has_changed(source, before)


def test_a_lock_excludes_and_ends_with_its_holder(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "run")
    with folder.locked():
        assert folder.running_pid() == os.getpid()
        with pytest.raises(EnvironmentNotReadyError, match="is in use"), folder.locked():
            pass
    assert folder.running_pid() is None
    with folder.locked():
        pass


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "two")]


def test_pairs_are_marked_in_order_and_markup_is_escaped() -> None:
    row = {
        "text": "Doc [bold]x[/]. What? This. What? That.",
        "shots": [{"pairs": [{"question": "What?", "answer": "This."}, {"question": "What?", "answer": "That."}]}],
    }
    assert mark_pairs(row) == (r"Doc \[bold]x\[/]. [green]What?[/] [yellow]This.[/] [green]What?[/] [yellow]That.[/]")


def test_figures_for_people() -> None:
    assert [duration(7), duration(3723), duration(None)] == ["0:07", "1:02:03", "?"]
    assert [quantity(9999), quantity(12_345), quantity(8e9), quantity(None)] == ["9999", "12.3k", "8B", "?"]
    assert [size(999), size(1.5e9)] == ["999 B", "1.5 GB"]
