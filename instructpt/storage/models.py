"""Models by folder, by store prefix with a manifest, or by hub id, as a folder that is whole and verified.

A store prefix is one that training's export wrote: ``manifest.json`` of kind ``model`` names every file with its
sha256. It is fetched once into ``cache/<digest>`` and renamed there only when every file was verified, so that a
killed download leaves nothing that looks like a model, and workers are offline afterwards (protocols.md 1).
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructpt.api.runspec import ResolvedInput
from instructpt.errors import ConfigError, NotFoundError, StorageError
from instructpt.storage import Scheme, Store, open_store, parse_uri
from instructpt.storage.hashing import sha256_of_file
from instructpt.storage.url import check_key

CONFIG = "config.json"
MANIFEST = "manifest.json"
FIELD = "model"
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?$")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# A manifest of a model lists a few files; anything longer is not one.
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """The part of a model's manifest that is needed here; storage may not import instructpt.corpus."""

    digest: str
    files: Mapping[str, str]


def fetch_model(model: ResolvedInput, cache: Path) -> Path:
    """A folder with the model's files, fetched if it is not on this machine.

    Args:
        model: A folder with ``config.json``, a store prefix with ``manifest.json``, or a hub id (``owner/name``, or
            ``owner/name@revision``). ``digest``, where given, must be that of the manifest.
        cache: Folder for models from a store; the hub has its own cache.

    Raises:
        ConfigError: The model does not exist, has no ``config.json``, or is not the one with that digest.
        StorageError: A file's sha256 is not the one in its manifest, before and after fetching it again.
    """
    if "://" in model.uri:
        location = parse_uri(model.uri)
        if location.scheme is not Scheme.FILE:
            return _from_store(open_store(model.uri, access=model), model, cache)
        return _from_folder(Path(location.path).expanduser(), model)
    folder = Path(model.uri).expanduser()
    if folder.exists() or not _HUB_ID.match(model.uri):
        return _from_folder(folder, model)
    return _from_hub(model)


def model_digest(folder: Path) -> str:
    """``sha256:<hex>`` of a model: that of its manifest, or of the names and contents of its files without one."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return _digest(manifest.read_bytes())
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder))):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return "sha256:" + total.hexdigest()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_folder(folder: Path, model: ResolvedInput) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"model folder {folder} does not exist",
            field=FIELD,
            value=model.uri,
            fix="correct the path, or give an s3:// prefix or a hub id such as owner/name",
        )
    manifest = folder / MANIFEST
    if manifest.is_file():
        parsed = _parse(manifest.read_bytes(), where=str(manifest), wanted=model.digest)
        for name, sha256 in parsed.files.items():
            if not (folder / name).is_file() or sha256_of_file(folder / name) != sha256:
                raise StorageError(
                    f"{folder / name} is missing or not the file its manifest names", fix="copy it again"
                )
    return _checked(folder, model)


def _checked(folder: Path, model: ResolvedInput) -> Path:
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"model folder {folder} has no {CONFIG}",
            field=FIELD,
            value=model.uri,
            fix="give a folder in the Hugging Face layout: config.json, safetensors and tokenizer files",
        )
    if model.digest is not None and not (folder / MANIFEST).is_file() and model_digest(folder) != model.digest:
        raise _other_digest(str(folder), model_digest(folder), model.digest)
    return folder


def _other_digest(where: str, found: str, wanted: str) -> ConfigError:
    return ConfigError(
        f"the model at {where} has digest {found}",
        field=f"{FIELD}.digest",
        value=wanted,
        fix="the model was made again; run the jobs after it again or drop the digest",
    )


def _from_store(store: Store, model: ResolvedInput, cache: Path) -> Path:
    where = f"{store.uri}/{MANIFEST}"
    try:
        size = store.head(MANIFEST).size
        data = store.get(MANIFEST) if size <= _MAX_MANIFEST_BYTES else b""
    except NotFoundError as error:
        raise ConfigError(
            f"no {MANIFEST} below {store.uri}",
            field=FIELD,
            value=model.uri,
            fix="give the prefix that a TrainingJob exported to, or wait until it is finished",
        ) from error
    manifest = _parse(data, where=where, wanted=model.digest)
    target = cache / manifest.digest.removeprefix("sha256:")
    if target.is_dir():
        return _checked(target, model)
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{target.name[:16]}-{secrets.token_hex(6)}"
    try:
        for name, sha256 in manifest.files.items():
            _download(store, name, sha256, partial / name)
        (partial / MANIFEST).write_bytes(data)
        _checked(partial, model)
        try:
            partial.rename(target)
        except OSError:
            # Another worker of this node was first; its copy was verified as ours was.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(store: Store, name: str, sha256: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            store.download(name, path)
        except NotFoundError as error:
            raise StorageError(f"{store.uri}/{name} is named by the model's manifest but is not there") from error
        if sha256_of_file(path) == sha256:
            return
    raise StorageError(
        f"{store.uri}/{name} has sha256 {sha256_of_file(path)}, its manifest says {sha256}",
        fix="export the model again",
    )


def _parse(data: bytes, *, where: str, wanted: str | None) -> _Manifest:
    digest = _digest(data)
    if wanted is not None and digest != wanted:
        raise _other_digest(where, digest, wanted)
    try:
        raw: dict[str, Any] = json.loads(data)
        files = {check_key(str(f["path"])): str(f["sha256"]) for f in raw["files"]}
        kind = str(raw["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is not a manifest of a model", field=FIELD, fix="correct the location") from error
    if kind != "model":
        raise ConfigError(f"{where} is of kind {kind}, not model", field=FIELD, fix="name the output of a TrainingJob")
    return _Manifest(digest=digest, files=files)


def _from_hub(model: ResolvedInput) -> Path:
    name, _, revision = model.uri.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _no_hub(model, "huggingface_hub is not installed: pip install 'instructpt[synthesis]'") from error
    try:
        folder = snapshot_download(name, revision=revision or None, endpoint=model.endpoint, allow_patterns=_HUB_FILES)
    # The hub's client raises its own, requests', httpx's and OS errors; each means that there is no model.
    except Exception as error:
        raise _no_hub(model, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return _checked(Path(folder), model)


def _no_hub(model: ResolvedInput, why: str) -> ConfigError:
    return ConfigError(
        f"{model.uri} is neither a folder on this machine nor reachable on the model hub ({why})",
        field=FIELD,
        value=model.uri,
        fix="correct the name, give a folder, or check the network, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE",
    )


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
