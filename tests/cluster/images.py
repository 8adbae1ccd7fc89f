"""Build the images of the project for the test bed: for CPUs, from their Dockerfiles, on the test bed's own base.

Each image is named after what it is made from, so ``imagePullPolicy: Never`` is right and a second call does nothing.
The libraries of the synthesizer and the trainer are one image under both; a change of code makes only small last
layers. Images are kept as OCI layouts that share their blobs, which :mod:`cluster.store` loads without reading a layer
twice. ``cd tests && python -m cluster.images`` builds all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import base_image, binaries, layers, store

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATES = Path("/etc/ssl/certs")
# A new value builds everything anew.
RECIPE = "1"
WAIT_SECONDS = 3600.0
# What every image of a role copies, beside its own folder.
PROJECT = ("LICENSE", "README.md", "pyproject.toml", "images/build/requirements.lock", "instructpt", "operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One image: its Dockerfile, what it is made from, and the image under it (none: the test bed's base)."""

    repository: str
    dockerfile: str
    sources: tuple[str, ...]
    tag: str = "dev"
    under: str | None = None
    arguments: tuple[str, ...] = ()


LIBRARIES = "libraries"
ROLES = {
    LIBRARIES: Role(
        repository="localhost/instructpt/cpu-libraries",
        dockerfile="images/cpu/libraries.Dockerfile",
        sources=("images/cpu/libraries.Dockerfile", "images/cpu/requirements.lock", "images/cpu/cuda_stand_ins.py"),
    ),
    "operator": Role(
        repository="localhost/instructpt/operator",
        dockerfile="images/operator/Dockerfile",
        sources=("images/operator/Dockerfile", "images/operator/requirements.lock", *PROJECT),
    ),
    "synthesizer": Role(
        repository="localhost/instructpt/synthesizer",
        dockerfile="images/synthesizer/Dockerfile",
        sources=("images/synthesizer/Dockerfile", "images/synthesizer/requirements.lock", *PROJECT),
        tag="dev-cpu",
        under=LIBRARIES,
        arguments=("ACCELERATOR=cpu",),
    ),
    "trainer": Role(
        repository="localhost/instructpt/trainer",
        dockerfile="images/trainer/Dockerfile",
        sources=("images/trainer/Dockerfile", "images/trainer/requirements.lock", *PROJECT),
        tag="dev-cpu",
        under=LIBRARIES,
        arguments=("ACCELERATOR=cpu",),
    ),
}
IMAGES = ("operator", "synthesizer", "trainer")


def load(names: Iterable[str] = IMAGES) -> dict[str, str]:
    """Build what is missing, bring it into the running test bed, and return the reference of each image.

    Raises:
        RuntimeError: A tool is absent or failed.
    """
    refs = build(names)
    for ref in refs.values():
        store.load_image(layout_of(ref), ref)
    return refs


def build(names: Iterable[str] = IMAGES) -> dict[str, str]:
    """Build what is missing and return the reference of each image.

    Raises:
        RuntimeError: A tool is absent or failed; its last output is in the message.
    """
    # Names are made once: an edit during a build changes neither what is built nor what is returned.
    refs = {name: reference(name) for name in ROLES}
    wanted = {name: refs[name] for name in names}
    if any(not is_built(ref) for ref in wanted.values()):
        with base_image.locked(binaries.cache_folder() / "oci" / ".lock"):
            for name in wanted:
                _ensure(name, refs)
            buildah("rmi", "--prune")  # stages of builds before, which nothing is built on any more
    return wanted


def reference(name: str) -> str:
    """What the image of the sources as they are now is called."""
    role = ROLES[name]
    return f"{role.repository}:{role.tag}-{_key(name)}"


def layout_of(ref: str) -> Path:
    """The OCI layout that holds this image once it is built."""
    return binaries.cache_folder() / "oci" / ref.removeprefix("localhost/instructpt/").replace(":", "-")


def is_built(ref: str) -> bool:
    """Whether the image lies in its layout."""
    return (layout_of(ref) / "index.json").exists()


def buildah(*args: str | Path) -> str:
    """Run buildah on a store of its own in the cache.

    Raises:
        RuntimeError: It is absent or failed; its last output is in the message.
    """
    if shutil.which("buildah") is None:
        raise RuntimeError("buildah is missing: apt-get install --no-install-recommends buildah")
    folder = binaries.cache_folder() / "buildah"
    scratch = binaries.cache_folder() / "tmp"
    for path in (folder, scratch):
        path.mkdir(parents=True, exist_ok=True)
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    argv = ["buildah", "--root", _root(), "--runroot", _run_root(), "--storage-driver", "overlay"]
    if args[0] != "run":
        args = (args[0], *(("--signature-policy", policy) if args[0] in {"bud", "pull"} else ()), *args[1:])
    done = subprocess.run(
        [str(arg) for arg in (*argv, *args)],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"buildah {args[0]} failed:\n{(done.stdout + done.stderr)[-6000:]}")
    return done.stdout


def _root() -> Path:
    return binaries.cache_folder() / "buildah" / "root"


def _run_root() -> Path:
    """Where mounts are counted: one for each store, and gone after a reboot, as the mounts are."""
    return Path(f"/run/instructpt-buildah-{hashlib.sha256(bytes(_root())).hexdigest()[:8]}")


def _ensure(name: str, refs: dict[str, str]) -> None:
    """Build one image and what is under it, unless they are there. The lock is held."""
    ref, role = refs[name], ROLES[name]
    if is_built(ref):
        return
    start = time.monotonic()
    if not _in_store(ref):
        under = _base_in_store() if role.under is None else refs[role.under]
        if role.under is not None and not _in_store(under):
            _make(role.under, under, _base_in_store())
            _forget(role.under, keep=under)
        _make(name, ref, under)
    layers.export(_root(), ref, layout_of(ref))
    _forget(name, keep=ref)
    print(f"built {ref} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _make(name: str, ref: str, under: str) -> None:
    role = ROLES[name]
    arguments = [part for value in (f"BASE_IMAGE={under}", *role.arguments) for part in ("--build-arg", value)]
    buildah(
        # A RUN step needs no namespaces of its own. Two roles share the stage that makes the wheel.
        *("bud", "--isolation", "chroot", "--network", "host", "--layers", "--pull-never"),
        *[part for volume in _volumes() for part in ("--volume", volume)],
        *(*arguments, "--tag", ref, "--file", str(ROOT / role.dockerfile), str(ROOT)),
    )


def _volumes() -> list[str]:
    """This machine's certificates and settings of pip: for RUN steps, never part of an image."""
    settings = binaries.cache_folder() / "buildah" / "pip.conf"
    lines = ["[global]", "disable-pip-version-check = true", "progress-bar = off"]
    volumes = [f"{settings}:/etc/pip.conf:ro"]
    if CERTIFICATES.is_dir():
        lines.append(f"cert = {CERTIFICATES}/ca-certificates.crt")
        volumes.append(f"{CERTIFICATES}:{CERTIFICATES}:ro")
    settings.write_text("\n".join(lines) + "\n")
    return volumes


def _base_in_store() -> str:
    """The test bed's base under a name of its content, so that the one of another version stays apart."""
    ref = f"localhost/instructpt/base:{base_image.base_key()}"
    if not _in_store(ref):
        archive = base_image.archives([base_image.BASE])[base_image.BASE]
        buildah("pull", f"docker-archive:{archive}")
        buildah("tag", base_image.BASE, ref)
    return ref


def _in_store(ref: str) -> bool:
    return any(ref in (image.get("names") or ()) for image in json.loads(buildah("images", "--json") or "null") or ())


def _forget(name: str, keep: str) -> None:
    """Remove the other versions of an image, and the blobs that no layout needs any more."""
    role, parent = ROLES[name], layout_of(keep).parent
    for image in json.loads(buildah("images", "--json")):
        for ref in image.get("names") or ():
            if ref.startswith(f"{role.repository}:") and ref != keep:
                buildah("rmi", "--force", ref)
    for folder in parent.glob(f"{layout_of(role.repository + ':').name}*"):
        if folder != layout_of(keep):
            shutil.rmtree(folder)
    used = {blob for index in parent.glob("*/index.json") for blob in layers.blobs_of(index.parent)}
    for blob in parent.glob("blobs/*/*"):
        if blob.resolve() not in used:
            blob.unlink()


def _key(name: str) -> str:
    role = ROLES[name]
    digest = hashlib.sha256(f"{RECIPE} {role.arguments}".encode())
    digest.update((base_image.base_key() if role.under is None else _key(role.under)).encode())
    for path in _files(role.sources):
        digest.update(f"\0{path.relative_to(ROOT)}\0{_content(path, path.stat().st_mtime_ns)}".encode())
    return digest.hexdigest()[:12]


@functools.cache
def _content(path: Path, _changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(sources: Iterable[str]) -> Iterator[Path]:
    for source in map(ROOT.joinpath, sorted(sources)):
        if source.is_file():
            yield source
        else:
            yield from sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


if __name__ == "__main__":
    started = time.monotonic()
    for image, made in build(sys.argv[1:] or IMAGES).items():
        print(f"{image}\t{made}\t{layout_of(made)}")
    print(f"{time.monotonic() - started:.1f} s")
