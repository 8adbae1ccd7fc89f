"""The next command as a person can type it here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

DEFAULT_RUNS = Path("runs")


def command(*words: str, runs: Path | None = None) -> str:
    """``instructpt WORDS``, by a name that the shell finds, with ``--runs`` where it is not the default one."""
    tail = [*words, *(["--runs", str(runs)] if runs is not None and runs != DEFAULT_RUNS else [])]
    return shlex.join([*_program(), *tail])


def _program() -> list[str]:
    if shutil.which("instructpt"):
        return ["instructpt"]
    called = Path(sys.argv[0])
    if called.name == "instructpt" and called.is_file() and os.access(called, os.X_OK):
        return [os.path.relpath(called)]
    # `python` may be absent or another one than this, where no virtual environment is active.
    found = shutil.which("python")
    same = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return ["python" if same else sys.executable, "-m", "instructpt"]
