"""Folders of files with names of their own: their entries in a manifest, and fetching a tokenizer."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from instructpt.api.runspec import ResolvedInput
from instructpt.corpus.manifest import MANIFEST, FileEntry, load_manifest
from instructpt.errors import ConfigError, StorageError
from instructpt.storage import FilesystemStore, Scheme, open_store, parse_uri
from instructpt.storage.hashing import sha256_of_file
from instructpt.storage.models import fetch_model

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Entries of all files directly in a folder, by name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple(FileEntry(path=p.name, bytes=p.stat().st_size, sha256=sha256_of_file(p)) for p in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFolder:
    """A tokenizer on this machine.

    Attributes:
        folder: Holds its files.
        digest: Of the manifest it came with, for the lineage; that of its files where there is none.
        content: Over its files alone, so that a tokenizer and a model exported with it agree.
    """

    folder: Path
    digest: str
    content: str


def tokenizer_folder(input_: ResolvedInput, cache: Path) -> TokenizerFolder:
    """A folder with the tokenizer's files.

    Args:
        input_: A prefix with a manifest of kind ``tokenizer`` or ``model``, a folder, or a hub id.
        cache: Folder for what is fetched.

    Raises:
        ConfigError: There is no tokenizer, or not the one with that digest.
        StorageError: A file is not the one that its manifest names.
    """
    remote = "://" in input_.uri and parse_uri(input_.uri).scheme is not Scheme.FILE
    local = None if remote else Path(parse_uri(input_.uri).path).expanduser()
    if local is not None and not local.is_dir():
        return _described(fetch_model(input_, cache))
    store = open_store(input_.uri, access=input_)
    if not store.exists(MANIFEST):
        if local is None:
            raise ConfigError(
                f"no {MANIFEST} below {store.uri}", field="tokenizer", value=input_.uri, fix="name the output of a job"
            )
        return _described(local)
    manifest = load_manifest(store, digest=input_.digest)
    wanted = [file for file in manifest.files if file.path in TOKENIZER_FILES]
    if not wanted:
        raise ConfigError(
            f"{store.uri} holds a set of kind {manifest.kind} without a tokenizer", field="tokenizer", value=input_.uri
        )
    folder = local if isinstance(store, FilesystemStore) and local is not None else None
    if folder is None:
        folder = cache / f"tokenizer-{manifest.digest.removeprefix('sha256:')[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in wanted:
            if not (folder / file.path).is_file():
                store.download(file.path, folder / file.path)
    for file in wanted:
        if not (folder / file.path).is_file() or sha256_of_file(folder / file.path) != file.sha256:
            raise StorageError(f"{store.uri}/{file.path} is not the file that its manifest names", fix="make it again")
    return _described(folder, manifest.digest)


def _described(folder: Path, digest: str | None = None) -> TokenizerFolder:
    total = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            total.update(f"{name}\0{sha256_of_file(folder / name)}\n".encode())
    content = "sha256:" + total.hexdigest()
    return TokenizerFolder(folder=folder, digest=digest or content, content=content)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files as they are."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
