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
from collections.abc import Sequence
from pathlib import Path

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
    "datatrove": ("datatrove==0.10.1", "aiofiles==25.1.0", "aiosqlite==0.22.1"),
}

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
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [*(["--no-deps"] if name in SHARED else []), *PACKAGES[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
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
