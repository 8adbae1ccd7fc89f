"""Make the images of the test bed that no Dockerfile of the project makes, once, into the user's cache folder.

No registry is needed: the base is Debian from its packages, the others are one static program each. They are written as
docker archives (``ctr -n k8s.io images import FILE`` takes them) by this module itself, so nothing but ``debootstrap``,
``tar`` and ``busybox`` must be installed. Each archive is named after what went into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import binaries

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
BASE = f"localhost/base:{SUITE}"
PAUSE = "localhost/pause:latest"
NSLOOKUP = "localhost/nslookup:latest"
TRAINING_OPERATOR = f"localhost/training-operator:{binaries.PROGRAMS['training-operator.v1'].version}"
# Raised when what this module writes changes in a way that its inputs do not show.
RECIPE = "1"
NOBODY = 65532
# Of the unpacked Debian: what a running system fills, and what only installing needs.
LEFT_OUT = (
    *("./dev/*", "./proc/*", "./sys/*", "./etc/hostname", "./etc/resolv.conf"),
    *("./var/cache/apt/*.bin", "./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./var/log/*.log"),
)

BUSYBOX = Path("/bin/busybox")
BUSYBOX_LINKS = ("sh", "sleep")
# As process 1 of a pod's sandbox it must end at once when it is told to.
WAIT = "trap 'exit 0' INT TERM; while :; do sleep 3600 & wait $!; done"
# The training operator's init container looks names up with the search domains of the pod, as getent does.
NSLOOKUP_SCRIPT = """\
#!/bin/sh
# The name is the last argument; an answer is success.
for name; do :; done
exec getent hosts "$name"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An uncompressed tar file and the digest of its bytes."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one archive is made: what its key covers, and what writes its layers into a folder."""

    key: Callable[[], str]
    layers: Callable[[Path], list[Layer]]
    config: dict[str, Any] = field(default_factory=dict)


def archives(names: Iterable[str] = (PAUSE, NSLOOKUP, TRAINING_OPERATOR)) -> dict[str, Path]:
    """A docker archive for each of these images, made where it is missing.

    Raises:
        KeyError: There is no such image here.
        RuntimeError: A tool is absent or failed; what to install is in the message.
    """
    return {name: _archive(name) for name in names}


def base_key() -> str:
    """What the base is made from, as a key of images that are built on it."""
    return _key(SUITE, *PACKAGES)


def _archive(name: str) -> Path:
    recipe = RECIPES[name]
    folder = binaries.cache_folder() / "archives"
    target = folder / f"{name.rpartition('/')[2].replace(':', '-')}-{recipe.key()}.tar"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{name.rpartition('/')[2]}.lock"), scratch_folder() as scratch:
        if not target.exists():  # another process may have made it meanwhile
            _write_archive(scratch / "image.tar", name, recipe.layers(scratch), recipe.config)
            (scratch / "image.tar").replace(target)
    return target


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file; others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A scratch folder on the file system of the cache, so that results can be renamed into it."""
    parent = binaries.cache_folder() / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-", dir=parent) as scratch:
        yield Path(scratch)


def command(*args: str | Path, package: str) -> str:
    """Run a tool and return what it printed.

    Raises:
        RuntimeError: It is not installed, or it failed; its last output is in the message.
    """
    if shutil.which(str(args[0])) is None:
        raise RuntimeError(f"{args[0]} is missing: apt-get install --no-install-recommends {package}")
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, args[:3]))} ... failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256(RECIPE.encode())
    for part in parts:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return digest.hexdigest()[:12]


def _base_layers(scratch: Path) -> list[Layer]:
    root, tar = scratch / "root", scratch / "base.tar"
    command(
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)),
        package="debootstrap",
    )
    command(
        *("tar", "--numeric-owner", "--sort=name", "-C", str(root), *[f"--exclude={path}" for path in LEFT_OUT]),
        *("-cf", str(tar), "."),
        package="tar",
    )
    shutil.rmtree(root)
    return [Layer(path=tar, digest=_digest(tar))]


def _nslookup_layers(scratch: Path) -> list[Layer]:
    (base,) = _layers_of(_archive(BASE), scratch)
    return [base, _small_layer(scratch / "nslookup.tar", {"usr/bin/nslookup": NSLOOKUP_SCRIPT.encode()})]


def _pause_layers(scratch: Path) -> list[Layer]:
    links = {f"bin/{name}": "busybox" for name in BUSYBOX_LINKS}
    return [_small_layer(scratch / "pause.tar", {"bin/busybox": _busybox()}, links)]


def _training_operator_layers(scratch: Path) -> list[Layer]:
    binaries.build(["training-operator.v1"])
    program = binaries.path("training-operator.v1").read_bytes()
    return [_small_layer(scratch / "operator.tar", {"manager": program})]


def _busybox() -> bytes:
    if not BUSYBOX.exists():
        raise RuntimeError(f"{BUSYBOX} is missing: apt-get install --no-install-recommends busybox-static")
    return BUSYBOX.read_bytes()


def _small_layer(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Layer:
    """A layer of a few files and links, all of root, all readable and executable; the same bytes every time."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folders = {str(parent) for name in [*files, *(links or {})] for parent in Path(name).parents} - {"."}
        for name in sorted(folders | {"tmp"}):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for name, target in sorted((links or {}).items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
    return Layer(path=path, digest=_digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_archive(path: Path, name: str, layers: list[Layer], config: dict[str, Any]) -> None:
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "test bed"} for _ in layers],
        "created": "1970-01-01T00:00:00Z",
    }
    blob = json.dumps(image, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(blob).hexdigest()}.json"
    listed = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{layer.digest}.tar" for layer in layers]}]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for layer in layers:
            tar.add(layer.path, f"{layer.digest}.tar")
        for entry_name, content in ((config_name, blob), ("manifest.json", json.dumps(listed).encode())):
            entry = tarfile.TarInfo(entry_name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _layers_of(archive: Path, scratch: Path) -> list[Layer]:
    """The layers of an archive that :func:`_write_archive` wrote, unpacked into the scratch folder."""
    with tarfile.open(archive) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        names = json.load(manifest)[0]["Layers"]
        for name in names:
            tar.extract(name, scratch, filter="data")
    return [Layer(path=scratch / name, digest=name.removesuffix(".tar")) for name in names]


RECIPES = {
    BASE: Recipe(key=base_key, layers=_base_layers, config={"Cmd": ["/bin/sh"]}),
    NSLOOKUP: Recipe(
        key=lambda: _key(base_key(), NSLOOKUP_SCRIPT),
        layers=_nslookup_layers,
        config={"User": f"{NOBODY}:{NOBODY}", "Cmd": ["/bin/sh"]},
    ),
    PAUSE: Recipe(
        key=lambda: _key(_busybox(), WAIT),
        layers=_pause_layers,
        config={"User": "65535:65535", "Entrypoint": ["/bin/sh", "-c", WAIT]},
    ),
    TRAINING_OPERATOR: Recipe(
        key=lambda: _key(TRAINING_OPERATOR),
        layers=_training_operator_layers,
        config={"User": f"{NOBODY}:{NOBODY}", "Entrypoint": ["/manager"]},
    ),
}


if __name__ == "__main__":
    for image, file in archives(RECIPES).items():
        print(f"{image}\t{file}\t{file.stat().st_size / 1e6:.0f} MB")
