from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from instructpt.api.runspec import MAX_RESULT_BYTES
from instructpt.cli import authoring
from instructpt.cli.console import Output, command
from instructpt.cli.worker import fitted
from instructpt.errors import EnvironmentNotReadyError
from instructpt.local.check import Row


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_hints_use_the_name_that_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "argv", ["nothing"])
    assert command("stop", "x") == f"{sys.executable} -m instructpt stop x"
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "bin/python")))
    assert command("stop", "x") == "python -m instructpt stop x"
    monkeypatch.setattr(sys, "argv", [str(executable(tmp_path / ".venv/bin/instructpt"))])
    assert command("stop", "x") == ".venv/bin/instructpt stop x"
    executable(tmp_path / "bin/instructpt")
    assert command("stop", "x") == "instructpt stop x"


def test_hints_name_runs_where_they_are_not_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "instructpt")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("run", "a b.yaml", runs=Path("runs")) == "instructpt run 'a b.yaml'"
    assert command("logs", "x", "-f", runs=Path("my runs")) == "instructpt logs x -f --runs 'my runs'"


@pytest.mark.parametrize("text", ["a", "語", "\n", "\x01", '"', "𝄞", "\udc80"])
@pytest.mark.parametrize("count", [10, 700, 1400, 5000])
def test_a_termination_message_fits_whatever_it_is_written_in(text: str, count: int) -> None:
    message = {"error": {"type": "ConfigError", "message": text * count, "field": None, "retryable": False}}
    left = fitted(message)
    assert len(left.encode()) <= MAX_RESULT_BYTES
    said = json.loads(left)["error"]["message"]
    if text != "\udc80":
        assert (text * count).startswith(said)
    whole = len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")) <= MAX_RESULT_BYTES
    assert (len(said) == count) is whole
    assert len(said) > 100 or whole


def test_a_fix_with_brackets_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(what="torch", ok=False, found="not [here]", fix="pip install 'instructpt[local]'")
    monkeypatch.setattr("instructpt.local.check.check_machine", lambda: [row])
    with pytest.raises(EnvironmentNotReadyError, match="1 of 1 checks failed"):
        authoring.check(None, Output.TABLE)
    assert "not [here]  -> pip install 'instructpt[local]'" in capsys.readouterr().out
