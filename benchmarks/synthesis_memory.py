"""The product's worker in this process, and the peak of its resident memory."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def peak_mb() -> float:
    """The most memory that this process has held (``VmHWM``)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


if __name__ == "__main__":
    from instructpt.cli.worker import run_worker

    job = json.loads(sys.stdin.readline())
    code = run_worker("synthesize", Path(job["spec"]), job["hash"])
    assert code == 0, f"the worker ended with {code}"
    print("\nRESULT " + json.dumps({"peak_mb": peak_mb()}), flush=True)
