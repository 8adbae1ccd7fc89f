"""Write an image from a store of buildah as an OCI layout, reading only layers that no layout has yet.

``buildah push`` compresses and reads every layer for every image, which for gigabytes of shared libraries takes minutes
at each change of code. The store keeps, for each layer, its files and the frames of the tar that it came from; together
they give the same bytes again, and every digest is checked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
# Kinds of entries of a tar-split file: a file's place, and bytes of the tar itself.
FILE, SEGMENT = 1, 2


def export(store: Path, ref: str, target: Path) -> None:
    """Write a layout folder whose blobs lie in the folder ``blobs`` beside it, shared by all layouts there.

    Args:
        store: The root of the store, with the overlay driver.
        ref: The image.
        target: The layout; it appears whole or not at all.

    Raises:
        LookupError: The store has no such image.
        RuntimeError: The store's bytes do not have the digest that they should have.
    """
    image = _find(store, ref)
    blobs = target.parent / "blobs"
    config = _blob(blobs, CONFIG, _config(store, image["id"]))
    written = [_layer(store, blobs, layer) for layer in _layers(store, image["layer"])]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": written}
    listed = {**_blob(blobs, MANIFEST, json.dumps(manifest).encode()), "annotations": {REF_NAME: ref}}
    aside = target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "blobs").symlink_to(Path("..") / "blobs")
    (aside / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (aside / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)


def blobs_of(layout: Path) -> Iterator[Path]:
    """The files that a layout names, its manifest among them."""
    blobs = layout / "blobs"
    for listed in json.loads((layout / "index.json").read_text())["manifests"]:
        manifest = blobs / listed["digest"].replace(":", "/")
        yield manifest.resolve()
        content = json.loads(manifest.read_text())
        for part in (content["config"], *content["layers"]):
            yield (blobs / part["digest"].replace(":", "/")).resolve()


def _find(store: Path, ref: str) -> dict[str, Any]:
    for image in json.loads((store / "overlay-images" / "images.json").read_text()):
        if ref in (image.get("names") or ()):
            found: dict[str, Any] = image
            return found
    raise LookupError(f"{store} has no image {ref}")


def _config(store: Path, image: str) -> bytes:
    """The configuration, which lies under the base64 of its digest; the image's id is that digest."""
    name = base64.b64encode(f"sha256:{image}".encode()).decode()
    return (store / "overlay-images" / image / f"={name}").read_bytes()


def _layers(store: Path, top: str) -> list[dict[str, Any]]:
    """The layers from the lowest to the top."""
    known = {layer["id"]: layer for layer in json.loads((store / "overlay-layers" / "layers.json").read_text())}
    found = [known[top]]
    while parent := found[-1].get("parent"):
        found.append(known[parent])
    return found[::-1]


def _blob(blobs: Path, media_type: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    path = blobs / "sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_bytes(content)
    aside.replace(path)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _layer(store: Path, blobs: Path, layer: dict[str, Any]) -> dict[str, Any]:
    """Write the tar of a layer, unless it is there."""
    algorithm, _, digest = layer["diff-digest"].partition(":")
    path = blobs / algorithm / digest
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        with aside.open("wb") as out:
            found = _assemble(store / "overlay" / layer["id"] / "diff", _frames(store, layer["id"]), out)
        if found != digest:
            aside.unlink()
            raise RuntimeError(f"layer {layer['id']} of {store} gives {found}, not {digest}")
        aside.replace(path)
    return {"mediaType": LAYER, "digest": layer["diff-digest"], "size": path.stat().st_size}


def _frames(store: Path, layer: str) -> Iterator[dict[str, Any]]:
    with gzip.open(store / "overlay-layers" / f"{layer}.tar-split.gz", "rt") as lines:
        for line in lines:
            yield json.loads(line)


def _assemble(files: Path, frames: Iterator[dict[str, Any]], out: IO[bytes]) -> str:
    """Write the tar from its frames and the files between them; return its digest."""
    digest = hashlib.sha256()
    for frame in frames:
        if frame["type"] == SEGMENT:
            pieces = iter([base64.b64decode(frame["payload"])])
        elif frame["type"] == FILE and frame.get("size"):
            pieces = _pieces(files / _name(frame))
        else:
            continue
        for piece in pieces:
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()


def _name(frame: dict[str, Any]) -> str:
    raw = frame.get("name_raw")
    return base64.b64decode(raw).decode(errors="surrogateescape") if raw else str(frame["name"]).lstrip("/")


def _pieces(path: Path) -> Iterator[bytes]:
    # A link would lead out of the layer; the tar has content for plain files alone.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        while piece := file.read(1 << 20):
            yield piece
