"""The locks of the images, of the GPU variants too, are what their requirements resolve to for Linux on x86-64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(900)


def test_the_locks_are_what_the_requirements_resolve_to() -> None:
    """Reads the metadata of every package from the index and downloads none."""
    done = subprocess.run(
        [sys.executable, "tools/locks.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
