"""What a figure depends on: versions, processor, load and commit. Every result file has it (docs, Benchmarks)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def commit() -> str:
    """The commit that is measured; ends in ``+`` where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return (git("rev-parse", "HEAD") or "none") + ("+" if changed else "")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed packages among these."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(packages: Iterable[str], **more: Any) -> dict[str, Any]:
    """The surroundings of a run, taken at its start; :func:`ended` adds what is known at its end.

    Args:
        packages: Distributions that the figures depend on.
        more: Further facts, such as versions of programs and peers.
    """
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "versions": versions(packages),
        "load_average_before": load(),
        **more,
    }


def ended(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the load at the end."""
    return {**found, "load_average_after": load()}


def command_line() -> str:
    """The command as it was typed."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return " ".join(["python", str(name), *sys.argv[1:]])
