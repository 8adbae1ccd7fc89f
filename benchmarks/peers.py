"""Environments of peers: each in a folder of its own below the user's cache, never in the project's.

A peer that cannot be installed or run is left out of a benchmark, which says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES: dict[str, tuple[str, ...]] = {
    "io": ("obstore==0.12.0", "aioboto3==15.5.0", "s3fs==2026.9.0"),
    "hf-trainer": ("accelerate==1.15.0",),
    "litgpt": (
        "litgpt==0.5.13",
        "lightning==2.6.6",
        "lightning-utilities==0.15.3",
        "pytorch-lightning==2.6.6",
        "torchmetrics==1.9.0",
        "jsonargparse==4.41.0",
        "typeshed-client==2.15.0",
    ),  # fmt: skip
    "prep": (
        "trl==1.16.0",
        "datasets==5.2.0",
        "tokenizers==0.23.3",
        "transformers==5.19.0",
        "Jinja2==3.1.6",
        "seqpacker==0.1.3",
    ),
    "datatrove": ("datatrove==0.10.1", "aiofiles==25.1.0", "aiosqlite==0.22.1"),
}
# Requirements that are installed without what they name themselves: trl asks for torch (5 GB), its packer does not.
ALONE = frozenset({"trl==1.16.0"})

SHARED = ("hf-trainer", "litgpt")
"""Peers that use the project's torch and transformers: what is compared are loops, not builds of torch. Their packages
are all named above and nothing else is installed, so that nothing hides the project's own."""


def cache() -> Path:
    """Folder for what benchmarks keep."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "instructpt" / "bench"


def interpreter(name: str) -> Path | None:
    """The Python of a peer's environment, made now if it is not there; None where it cannot be installed."""
    folder = cache() / "peers" / name
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    wanted = json.dumps(PACKAGES[name])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        venv.create(folder, with_pip=True)
    if name in SHARED:
        own = next((folder / "lib").glob("python*")) / "site-packages"
        (own / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = [package for package in PACKAGES[name] if name in SHARED or package in ALONE]
    others = [package for package in PACKAGES[name] if package not in alone]
    for command in ([*install, "--no-deps", *alone] if alone else [], [*install, *others] if others else []):
        done = subprocess.run(command, capture_output=True, text=True, check=False) if command else None
        if done is not None and done.returncode != 0:
            print(f"peer {name} cannot be installed and is left out:\n{done.stderr[-2000:]}", file=sys.stderr)
            return None
    stamp.write_text(wanted)
    return python


def peer_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in a peer's environment."""
    code = "import importlib.metadata as m, json, sys\nprint(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def run_arm(
    name: str, command: Sequence[str], given: Mapping[str, Any], *, required: bool, **options: Any
) -> dict[str, Any] | None:
    """One run of an arm in a process of its own: a line of JSON in, the last line it prints out.

    Args:
        name: Of the arm.
        command: Of the process.
        given: What it is told.
        required: Whether its failure ends the benchmark; a peer that fails is left out, and what it said is shown.
        options: For ``subprocess.run``.

    Raises:
        SystemExit: A required arm failed; with what it said.
    """
    done = subprocess.run(
        command, input=json.dumps(given) + "\n", capture_output=True, text=True, check=False, **options
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said = f"arm {name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    if required:
        raise SystemExit(said)
    print(said, file=sys.stderr, flush=True)
    return None
