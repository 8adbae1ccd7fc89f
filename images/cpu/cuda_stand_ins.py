"""Give the CUDA build of torch small stand-ins for the CUDA libraries that it is linked with, to run it on a CPU.

The package index has one build of torch for Linux on x86_64, which needs 2.7 GB of CUDA libraries to load and, with no
GPU, never calls them. A stand-in exports the names that torch asks for; each function returns 1, an error in every one
of these interfaces. The CUDA runtime itself stays the real one: it tells torch that there is no driver.

    python3 cuda_stand_ins.py SITE_PACKAGES      (needs nm, readelf, as and ld; writes to SITE_PACKAGES/torch/lib)
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# What the functions of a library begin with, for those whose symbols carry no version that names the library.
UNVERSIONED = {
    "libcufile.so.0": "cuFile",
    "libcusparseLt.so.0": "cusparseLt",
    "libnccl.so.2": "nccl",
    "libnvshmem_host.so.3": "nvshmem",
}
REAL = "libcudart.so.13"
# The driver is part of no package, so nothing that a machine without it needs is linked with it.
DRIVER = "libcuda.so.1"
CUDA = re.compile(r"lib(cu|nccl|nv)\w*\.so\.\d+")


def main(site_packages: Path) -> None:
    """Write a stand-in for each CUDA library that torch is linked with and that is not there."""
    folder = site_packages / "torch" / "lib"
    needed: set[str] = set()
    wanted: dict[str, dict[str, str]] = {}
    for library in sorted(folder.glob("*.so")):
        needed |= {name for name in _needed(library) if CUDA.fullmatch(name) and name != DRIVER}
        for symbol, version in _undefined(library):
            owner = _owner(symbol, version)
            if owner is not None:
                wanted.setdefault(owner, {})[symbol] = version
    if REAL not in needed:
        sys.exit(f"error: torch is not linked with {REAL}; this script knows another build of it")
    for name in sorted(needed - {REAL}):
        _write(folder / name, wanted.get(name, {}))
    print(f"{len(needed) - 1} stand-ins: {', '.join(sorted(needed - {REAL}))}")


def _output(*args: str | Path) -> list[str]:
    return subprocess.run([*map(str, args)], capture_output=True, text=True, check=True).stdout.splitlines()


def _needed(library: Path) -> list[str]:
    return [found[1] for line in _output("readelf", "-d", library) if (found := re.search(r"NEEDED.*\[(.+)\]", line))]


def _undefined(library: Path) -> list[tuple[str, str]]:
    lines = [line.split() for line in _output("nm", "-D", "--undefined-only", library)]
    return [(name, version) for name, _, version in (line[1].partition("@") for line in lines if line[0] == "U")]


def _owner(symbol: str, version: str) -> str | None:
    """The library that a symbol is asked of. NVIDIA's versions are named after the library; NVSHMEM's is not."""
    if CUDA.fullmatch(version):
        return version
    return next((name for name, prefix in UNVERSIONED.items() if re.match(rf"{prefix}[a-zA-Z_]", symbol)), None)


def _write(target: Path, symbols: dict[str, str]) -> None:
    """Assemble and link a library in which every name is one function that returns 1."""
    names = "".join(f".globl {name}\n.type {name},@function\n.set {name},fails\n" for name in sorted(symbols))
    versions = sorted(set(symbols.values()) - {""})
    with tempfile.TemporaryDirectory() as scratch:
        source, code, script = (Path(scratch) / name for name in ("code.s", "code.o", "versions"))
        source.write_text(f'.text\nfails: mov $1,%eax\nret\n{names}.section .note.GNU-stack,"",@progbits\n')
        script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
        options = [f"--version-script={script}"] if versions else []
        _output("as", "-o", code, source)
        _output("ld", "-shared", "-soname", target.name, *options, "-o", target, code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
