"""The script that continuous integration runs: what was skipped is not passed over, and it says how long it took."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"


def function(name: str) -> str:
    found = re.search(rf"^{name}\(\) \{{\n.*?^\}}$", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


def bash(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{body}"], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("== 12 passed in 3 s ==", 0),
        ("SKIPPED [1] tests/x.py:3: Go is not installed\n== 11 passed, 1 skipped in 3 s ==", 1),
        ("SKIPPED [2] tests/x.py:3: the test bed was up before\n== 11 passed, 2 skipped in 3 s ==", 1),
    ],
)
def test_whatever_was_skipped_fails(tmp_path: Path, said: str, code: int) -> None:
    (tmp_path / "said").write_text(said)
    done = bash(f"log={tmp_path}/log\n{function('without_skips')}\nwithout_skips cat {tmp_path}/said")
    assert done.returncode == code, done.stderr
    assert said in done.stdout, "pytest's closing line is shown"
    assert ("install what their reasons name" in done.stderr) is bool(code)


@pytest.mark.parametrize(("command", "said"), [("true", "passed"), ("false", "failed (1)")])
def test_the_seconds_of_all_of_it_come_last(tmp_path: Path, command: str, said: str) -> None:
    done = bash(f"log={tmp_path}/log prepared={tmp_path}/p\n{function('finish')}\ntrap finish EXIT\n{command}")
    assert re.fullmatch(rf"== all of it: \d+ s, {re.escape(said)}", done.stdout.splitlines()[-1])
    assert (done.returncode == 0) is (command == "true")


def test_a_failing_command_fails_the_script_although_its_output_goes_through_a_pipe(tmp_path: Path) -> None:
    done = bash(f"log={tmp_path}/log\n{function('without_skips')}\nwithout_skips false\necho went on")
    assert done.returncode == 1
    assert "went on" not in done.stdout
