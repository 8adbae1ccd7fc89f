"""The whole path on a small corpus, undisturbed and with every worker killed: the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import localruns
import pytest
import s3servers

# The whole path, several times over, beside another worker of pytest.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    localruns.write_corpus(folder / "corpus" / "a.jsonl", 60)
    localruns.pipeline(folder, corpus=folder / "corpus")
    done = localruns.instructpt("run", "small.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_report_has_both_arms_at_equal_tokens(undisturbed: Path) -> None:
    report = json.loads((undisturbed / "runs/small/report.json").read_text())
    assert set(report["arms"]) == {"instruct", "vanilla"}
    tokens = [report["arms"][arm]["train_tokens"] for arm in ("instruct", "vanilla")]
    assert tokens[0] == tokens[1] == 20_000
    for arm in report["arms"].values():
        assert arm["metrics"]
    html = (undisturbed / "runs/small/report.html").read_text()
    assert "<html" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_every_worker_killed_comes_to_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    localruns.pipeline(tmp_path, corpus=undisturbed / "corpus", backoffLimit=10)
    env = localruns.killing(tmp_path, "1,4")
    done = localruns.instructpt("run", "small.yaml", cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    killed = {p.name.rsplit("-", 1)[0] for p in (tmp_path / "marks").iterdir()}
    stages = {p.stem for p in (tmp_path / "runs/small/state").glob("*.json")}
    for step in stages - {"report"}:
        assert f"small.{step}.0" in killed, f"no worker of {step} was killed"
    assert localruns.digests(tmp_path / "runs/small") == localruns.digests(undisturbed / "runs/small")
    assert localruns.sha256(tmp_path / "runs/small/report.json") == localruns.sha256(
        undisturbed / "runs/small/report.json"
    )


def test_show_report_lineage_and_status_read_a_finished_run(undisturbed: Path) -> None:
    rows = json.loads(localruns.instructpt("lineage", "small", "-o", "json", cwd=undisturbed).stdout)
    known = {r["digest"] for r in rows}
    model = next(r for r in rows if r["step"] == "train-instruct")
    assert set(model["inputs"].values()) <= known
    status = json.loads(localruns.instructpt("status", "small", "-o", "json", cwd=undisturbed).stdout)
    assert status["status"]["phase"] == "Complete"
    table = localruns.instructpt("report", "small", cwd=undisturbed)
    assert "instruct" in table.stdout
    assert "vanilla" in table.stdout
    shown = json.loads(
        localruns.instructpt("show", "documents", "small", "-n", "2", "-o", "json", cwd=undisturbed).stdout
    )
    assert len(shown) == 2


def test_a_changed_evaluation_runs_again_alone(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    text = (folder / "small.yaml").read_text()
    assert "maxQuestions: 6" in text
    (folder / "small.yaml").write_text(text.replace("maxQuestions: 6", "maxQuestions: 5"))
    before = localruns.digests(folder / "runs/small")
    done = localruns.instructpt("run", "small.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    after = localruns.digests(folder / "runs/small")
    assert {step for step in before if before[step] != after[step]} == {"evaluation", "report"}


def test_the_same_pipeline_on_a_real_s3_server_comes_to_the_same_digests(
    undisturbed: Path, tmp_path: Path, s3_versitygw: s3servers.S3Server
) -> None:
    storage = f"s3://{s3_versitygw.bucket}/small"
    file = localruns.pipeline(tmp_path, corpus=undisturbed / "corpus", storage=storage)
    text = file.read_text().replace("  storage:\n", f"  storage:\n    endpoint: {s3_versitygw.endpoint}\n")
    file.write_text(text)
    done = localruns.instructpt("run", "small.yaml", cwd=tmp_path, **s3_versitygw.env)
    assert done.returncode == 0, done.stderr
    assert localruns.digests(tmp_path / "runs/small") == localruns.digests(undisturbed / "runs/small")
    secret = s3_versitygw.secret_key
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_text(errors="replace")]
