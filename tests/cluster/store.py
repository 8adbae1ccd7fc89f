"""Images in the containerd of the test bed. Its content stays in the cache, so an unchanged image is never read twice.

Images come as a folder or archive in the OCI layout, or as an archive of ``docker save``. An image is the same if its
configuration has the same digest, whatever packed its layers. From a layout, only the layers that are missing are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster import layout as layouts
from cluster.layout import Layout, run

NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
IMPORT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an archive: its reference, and the digest of its configuration."""

    ref: str
    config: str


def load_image(path: Path, ref: str | None = None, layout: Layout | None = None) -> list[Image]:
    """Bring the images of an archive or layout folder into the test bed, unless they are there.

    Args:
        path: A layout folder, an OCI archive, or a Docker archive.
        ref: The reference to give its only image; without it, the references in the archive.
        layout: The test bed; without it, the one of this machine.

    Raises:
        RuntimeError: containerd refused.
    """
    layout = layout or layouts.current()
    with _opened(path) as source:
        index = source.index()
        images = [image for image in source.images(index, ref)]
        if all(has_image(image.ref, image.config, layout) for image in images):
            return images
        if index is None:
            _ctr_import(layout, path.open("rb"))
        else:
            _import_layout(layout, source, index, images)
    return images


def has_image(ref: str, digest: str, layout: Layout | None = None) -> bool:
    """Whether the reference names the image of this digest: of its configuration or of its manifest."""
    layout = layout or layouts.current()
    targets = {}
    for line in ctr(layout, "images", "ls").splitlines()[1:]:
        fields = line.split()
        targets[fields[0]] = fields[2]
    # The CRI plugin gives every image a second reference: the digest of its configuration.
    return ref in targets and targets[ref] in (digest, targets.get(digest))


def ctr(layout: Layout, *args: str, timeout: float = 60.0) -> str:
    """Run containerd's own client in the namespace of Kubernetes."""
    return run(["ctr", "-a", str(layout.containerd_socket), "-n", "k8s.io", *args], timeout=timeout)


def remove_containers(layout: Layout) -> None:
    """Remove every container and snapshot of a container; content and images stay."""
    for task in ctr(layout, "tasks", "ls", "-q").split():
        with contextlib.suppress(RuntimeError):  # it ended meanwhile
            ctr(layout, "tasks", "kill", "-s", "SIGKILL", task)
            ctr(layout, "tasks", "rm", "-f", task)
    for container in ctr(layout, "containers", "ls", "-q").split():
        with contextlib.suppress(RuntimeError):
            ctr(layout, "containers", "rm", container)


class _Source:
    """The files of a layout, in a folder or in an archive."""

    def __init__(self, folder: Path | None, archive: tarfile.TarFile | None) -> None:
        self.folder, self.archive = folder, archive

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """One file and its size."""
        if self.folder:
            with (self.folder / name).open("rb") as file:
                yield file, (self.folder / name).stat().st_size
        else:
            assert self.archive
            member = self._member(name)
            file = self.archive.extractfile(member)
            assert file
            with file:
                yield file, member.size

    def json(self, name: str) -> Any:
        with self.open(name) as (file, _):
            return json.load(file)

    def blob(self, descriptor: dict[str, Any]) -> Any:
        return self.json(blob_path(descriptor["digest"]))

    def index(self) -> dict[str, Any] | None:
        """The index of an OCI layout; None for a Docker archive."""
        try:
            index: dict[str, Any] = self.json("index.json")
        except (KeyError, FileNotFoundError):
            return None
        return index

    def images(self, index: dict[str, Any] | None, ref: str | None) -> Iterator[Image]:
        if index is None:
            for entry in self.json("manifest.json"):
                digest = "sha256:" + Path(entry["Config"]).name.removesuffix(".json")
                for name in entry["RepoTags"] or []:
                    yield Image(name, digest)
            return
        for descriptor in index["manifests"]:
            marks = descriptor.get("annotations", {})
            name = ref or marks.get(NAME) or marks[REF_NAME]
            yield Image(name, self.blob(descriptor)["config"]["digest"])

    def _member(self, name: str) -> tarfile.TarInfo:
        assert self.archive
        for prefix in ("", "./"):
            with contextlib.suppress(KeyError):
                return self.archive.getmember(prefix + name)
        raise KeyError(name)


def blob_path(digest: str) -> str:
    """Where a layout keeps what has this digest."""
    return "blobs/" + digest.replace(":", "/", 1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    if path.is_dir():
        yield _Source(path, None)
    else:
        with tarfile.open(path, "r:") as archive:
            yield _Source(None, archive)


def _import_layout(layout: Layout, source: _Source, index: dict[str, Any], images: list[Image]) -> None:
    """Stream a layout into containerd, without the layers that lie there."""
    there = set(ctr(layout, "content", "ls", "-q").split())
    for descriptor, image in zip(index["manifests"], images, strict=True):
        descriptor["annotations"] = {**descriptor.get("annotations", {}), NAME: image.ref}
    process = _start_import(layout, subprocess.PIPE)
    assert process.stdin
    with contextlib.suppress(BrokenPipeError), process.stdin, tarfile.open(fileobj=process.stdin, mode="w|") as out:
        _add(out, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(out, "index.json", json.dumps(index).encode())
        written: set[str] = set()
        for descriptor in index["manifests"]:
            manifest = source.blob(descriptor)
            for part in (descriptor, manifest["config"], *manifest["layers"]):
                digest = part["digest"]
                if digest in written or (part in manifest["layers"] and digest in there):
                    continue
                written.add(digest)
                with source.open(blob_path(digest)) as (file, size):
                    _add(out, blob_path(digest), file, size)
    _finish_import(process)


def _ctr_import(layout: Layout, file: IO[bytes]) -> None:
    with file:
        _finish_import(_start_import(layout, file))


def _start_import(layout: Layout, stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
    argv = ["ctr", "-a", str(layout.containerd_socket), "-n", "k8s.io", "images", "import", "-"]
    return subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _finish_import(process: subprocess.Popen[bytes]) -> None:
    process.stdin = None  # closed by now
    output, _ = process.communicate(timeout=IMPORT_SECONDS)
    if process.returncode:
        raise RuntimeError(f"ctr images import failed:\n{output.decode(errors='replace')[-2000:]}")


def _add(out: tarfile.TarFile, name: str, content: bytes | IO[bytes], size: int | None = None) -> None:
    info = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        info.size = len(content)
        out.addfile(info, io.BytesIO(content))
    else:
        assert size is not None
        info.size = size
        out.addfile(info, content)
