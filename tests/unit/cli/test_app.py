from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

VERBS = {
    "init", "check", "plan", "run", "status", "logs", "stop", "delete", "show", "report", "recipes", "validate",
    "explain", "lineage", "requeue", "dashboard", "version",
}  # fmt: skip


def instructpt(*args: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "instructpt", *args],
        cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_COLOR": "1", **(env or {})},
    )  # fmt: skip


def test_the_verbs_are_frozen() -> None:
    import typer.main

    from instructpt.cli.app import app

    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert {n for n, c in commands.items() if not c.hidden} == VERBS
    assert [n for n, c in commands.items() if c.hidden] == ["worker"]
    assert sorted(commands["recipes"].commands) == ["copy", "ls"]


def test_a_typo_ends_with_2_and_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "apiVersion: instructpt.dev/v1alpha1\nkind: Corpus\nmetadata: {name: x}\n"
        "spec: {uri: a, storage: {uri: b}, textFeild: body}\n"
    )
    done = instructpt("run", "x.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "spec.textFeild: unknown field; did you mean textField?" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_an_unknown_verb_ends_with_2(tmp_path: Path) -> None:
    assert instructpt("runn", cwd=tmp_path).returncode == 2


def test_validate_prints_the_object_as_json(tmp_path: Path) -> None:
    instructpt("recipes", "copy", "demo", "d.yaml", cwd=tmp_path)
    done = instructpt("validate", "d.yaml", "--output", "json", cwd=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["kind"] == "InstructionPretraining"


def test_recipes_are_listed_and_never_overwrite(tmp_path: Path) -> None:
    listed = json.loads(instructpt("recipes", "ls", "-o", "json", cwd=tmp_path).stdout)
    assert {"demo", "quickstart", "continual-8b", "general-500m"} <= set(listed)
    assert instructpt("recipes", "copy", "demo", cwd=tmp_path).returncode == 0
    again = instructpt("recipes", "copy", "demo", cwd=tmp_path)
    assert again.returncode == 2
    assert "demo.yaml exists" in again.stderr


def test_init_writes_a_pipeline_that_plans(tmp_path: Path) -> None:
    assert instructpt("init", "demo", "--documents", "40", cwd=tmp_path).returncode == 0
    assert len((tmp_path / "demo" / "corpus" / "documents.jsonl").read_text().splitlines()) == 40
    done = instructpt("plan", "pipeline.yaml", "-o", "json", cwd=tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    rows = {r["step"]: r for r in plan["estimates"]}
    assert rows["corpus"]["documents"] == 40
    assert rows["train-instruct"]["fits"] is True
    assert not (tmp_path / "demo" / "runs").exists()


def test_init_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("keep")
    done = instructpt("init", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert (tmp_path / "demo" / "mine.txt").read_text() == "keep"


def test_explain_prints_documentation_offline(tmp_path: Path) -> None:
    done = instructpt("explain", "ipt.spec.training.tokens", cwd=tmp_path)
    assert "Non-padding tokens to train on, exactly" in done.stdout
    wrong = instructpt("explain", "trn.spec.tokns", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean tokens?" in wrong.stderr


def test_a_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = instructpt("status", "nope", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no run nope" in done.stderr


def test_check_says_what_is_there(tmp_path: Path) -> None:
    rows = {r["what"]: r for r in json.loads(instructpt("check", "-o", "json", cwd=tmp_path).stdout)}
    assert rows["python"]["ok"] is True
    assert rows["torch"]["ok"] is True


def test_version_as_yaml(tmp_path: Path) -> None:
    done = instructpt("version", "-o", "yaml", cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["python"].startswith("3.")


@pytest.mark.parametrize("value", ["zzzz", ""])
def test_a_worker_refuses_a_runspec_of_another_hash(tmp_path: Path, value: str) -> None:
    from instructpt.api.runspec import RunSpec

    spec = RunSpec.model_validate(
        {
            "verb": "inspect", "ownerKind": "Corpus", "ownerName": "x", "step": "corpus", "output": {"uri": "out"},
            "codeVersion": "0", "inspect": {"source": {"uri": "a"}, "split": {}, "documentsPerShard": 5},
        }
    )  # fmt: skip
    (tmp_path / "r.json").write_text(spec.to_json())
    env = {"INSTRUCTPT_TERMINATION_LOG": str(tmp_path / "t.json"), "INSTRUCTPT_SCRATCH": str(tmp_path / "s")}
    done = instructpt(
        "worker", "inspect", "--run-spec", "r.json", "--hash", value or spec.hash[:-1], cwd=tmp_path, env=env
    )
    assert done.returncode == 43
    assert "has hash" in json.loads((tmp_path / "t.json").read_text())["error"]["message"]
    assert not (tmp_path / "out").exists()
