"""Checkpoints on storage: each rank's part, a manifest with the sha256 of every file, and ``LATEST``, which names one.

``<output>/checkpoints/step-<N>/<life>/`` holds the parts of all ranks (:mod:`instructpt.training.parts`), the data
position and what was recorded so far; ``step-<N>/manifest.json`` is written once all of them were read back and had
the hash that they were written with, and ``LATEST`` last. A *life* is one start of the training, so that files of two
lives never mix. A checkpoint belongs to one training: the hash of what decides it stands in the manifest, and one of
another training is never resumed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from instructpt.api.runspec import RunSpec, canonical_json
from instructpt.corpus.manifest import MANIFEST, FileEntry, Manifest, digest_of, parse_manifest
from instructpt.errors import InstructPTError, NotFoundError, StorageError
from instructpt.storage import Store
from instructpt.storage.hashing import sha256_of_file, sha256_of_object
from instructpt.training.patience import Patience

log = logging.getLogger(__name__)

PREFIX = "checkpoints"
LATEST = f"{PREFIX}/LATEST"
TRAINER = "trainer.json"
_PART = re.compile(r"^rank-\d{5}-of-\d{5}\.safetensors$")
_STEP = re.compile(rf"^{PREFIX}/step-(\d+)/")
_DOWNLOADS = 4
_ANY = 1 << 62
_OTHER = "it is of a training with another spec"
RESUME_SECONDS = 600.0
"""How long a start waits for a storage that is away."""


def part_name(rank: int, ranks: int) -> str:
    """File of one rank's part."""
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def training_key(spec: RunSpec) -> str:
    """Hash of what decides a training, without how many ranks do it and how often it is saved."""
    assert spec.train is not None
    wire = spec.train.to_wire()
    for name in ("nodes", "processesPerNode", "gpusPerNode", "microBatchRows", "checkpoint", "deepspeed", "kernels"):
        wire.pop(name, None)
    wire["codeVersion"] = spec.code_version
    return digest_of(canonical_json(wire).encode())[7:23]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A verified checkpoint on this machine.

    Attributes:
        step: Steps done.
        folder: Holds its files.
    """

    step: int
    folder: str

    @property
    def parts(self) -> list[Path]:
        """Of all ranks that wrote it."""
        return sorted(path for path in Path(self.folder).iterdir() if _PART.match(path.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a start goes on from.

    Attributes:
        resume: None where there is no usable checkpoint: the training begins.
        refused: Why newer checkpoints were not taken, one sentence each, the newest first.
        broken: Steps of those that are no checkpoint of any training any more.
    """

    resume: Resume | None = None
    refused: tuple[str, ...] = field(default=())
    broken: tuple[int, ...] = field(default=())


def fetch_latest(store: Store, key: str, scratch: Path, patience: Patience | None = None) -> Found:
    """The newest checkpoint that is whole and of this training.

    One that is truncated, corrupt or of another training is refused with a reason, and the one before it is tried. A
    storage that does not answer refuses nothing: it is waited for.

    Raises:
        StorageError: The storage is away, or failed.
    """
    patience = patience or Patience(seconds=RESUME_SECONDS)
    newest = patience("checkpoints cannot be looked for", lambda: _latest(store))
    listed = patience("checkpoints cannot be listed", lambda: list(store.list(f"{PREFIX}/step-")))
    steps = sorted({int(m[1]) for info in listed if (m := _STEP.match(info.key))}, reverse=True)
    refused: list[str] = []
    broken: list[int] = []
    # One above LATEST was never verified: its writer died.
    for step in (s for s in steps if newest is not None and s <= newest):
        reason = _fetch(store, step, key, scratch / f"step-{step}", patience)
        if reason is None:
            log.info("resuming after step %d", step)
            resume = Resume(step=step, folder=str(scratch / f"step-{step}"))
            return Found(resume=resume, refused=tuple(refused), broken=tuple(broken))
        if reason != _OTHER:
            broken.append(step)
        refused.append(f"checkpoint step-{step} is refused: {reason}")
        log.warning("checkpoint step-%d below %s is refused: %s", step, store.uri, reason)
        shutil.rmtree(scratch / f"step-{step}", ignore_errors=True)
    return Found(refused=tuple(refused), broken=tuple(broken))


def drop_broken(store: Store, steps: Sequence[int], resumed: int, patience: Patience) -> None:
    """Take broken checkpoints out of the way, so that they hold no place of those that stay and are named no more.

    Args:
        store: Of the run's output.
        steps: Of those that were refused.
        resumed: That was taken instead; 0 where there was none.
        patience: Waits for a storage that is away.
    """
    what = "broken checkpoints cannot be removed"
    for step in steps:
        key = f"{PREFIX}/step-{step}/{MANIFEST}"
        patience(what, lambda key=key: store.delete(key))  # type: ignore[misc]
    if steps and resumed:
        patience(what, lambda: store.put(LATEST, json.dumps({"step": resumed}).encode()))
    elif steps:
        patience(what, lambda: store.delete(LATEST))


def latest_step(store: Store) -> int | None:
    """The step that ``LATEST`` names; None where there is none, or it cannot be read."""
    found = _latest(store)
    return None if found == _ANY else found


def _latest(store: Store) -> int | None:
    try:
        return int(json.loads(store.get(LATEST))["step"])
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s below %s cannot be read (%s): all checkpoints are looked at", LATEST, store.uri, error)
        return _ANY


def _fetch(store: Store, step: int, key: str, folder: Path, patience: Patience) -> str | None:
    """Download a checkpoint; the reason if it cannot be used."""
    base = f"{PREFIX}/step-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def fetched(file: FileEntry) -> str | None:
        path = folder / Path(file.path).name
        patience("a checkpoint cannot be read", lambda: store.download(f"{base}/{file.path}", path))
        size = path.stat().st_size
        if size != file.bytes:
            return f"{file.path} is truncated: {size:,} of {file.bytes:,} bytes"
        if sha256_of_file(path) != file.sha256:
            return f"{file.path} is corrupt: its sha256 is not that of what was written"
        return None

    try:
        data = patience("a checkpoint cannot be read", lambda: store.get(f"{base}/{MANIFEST}"))
        manifest = parse_manifest(data, where=f"{base}/{MANIFEST}")
        if manifest.extra.get("training_key") != key:
            return _OTHER
        names = [Path(file.path).name for file in manifest.files]
        if TRAINER not in names or sum(bool(_PART.match(n)) for n in names) != manifest.counts.get("parts"):
            return "its manifest does not name the parts of all ranks"
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            return next((reason for reason in pool.map(fetched, manifest.files) if reason is not None), None)
    except NotFoundError as error:
        return f"it is incomplete: {error}"
    except InstructPTError as error:
        if error.retryable:
            raise
        return str(error)


def store_files(
    store: Store, step: int, life: str, folder: Path, files: Sequence[FileEntry], patience: Patience
) -> tuple[FileEntry, ...]:
    """Upload files of a checkpoint and read them back.

    Args:
        store: Of the run's output.
        step: Steps done.
        life: Of this start.
        folder: Where the files lie.
        files: What was written, by the hash taken while it was.
        patience: Waits for a storage that is away.

    Returns:
        Their entries in the checkpoint's manifest.

    Raises:
        StorageError: The storage failed, or gave back something else.
    """
    what = f"checkpoint step-{step} cannot be stored"
    base = f"{PREFIX}/step-{step}"
    entries = tuple(FileEntry(path=f"{life}/{f.path}", bytes=f.bytes, sha256=f.sha256) for f in files)
    for file, entry in zip(files, entries, strict=True):
        _put(store, f"{base}/{entry.path}", folder / file.path, what, patience)
    for entry in entries:
        _verify(store, f"{base}/{entry.path}", entry.sha256, what, patience)
    return entries


def _put(store: Store, key: str, path: Path, what: str, patience: Patience) -> None:
    patience(what, lambda: store.put_file(key, path))


def _verify(store: Store, key: str, sha256: str, what: str, patience: Patience) -> None:
    if patience(what, lambda: sha256_of_object(store, key)) != sha256:
        raise StorageError(f"{store.uri}/{key} reads back different from what was written")


def name_checkpoint(
    store: Store, step: int, key: str, parts: int, files: Sequence[FileEntry], keep: int, patience: Patience
) -> None:
    """Write the manifest, then ``LATEST``; then remove all checkpoints but the newest ``keep``.

    Args:
        store: Of the run's output.
        step: Steps done.
        key: From :func:`training_key`.
        parts: Ranks that wrote it.
        files: Of all ranks, verified.
        keep: Checkpoints that stay.
        patience: Waits for a storage that is away.

    Raises:
        StorageError: The storage failed before ``LATEST`` was written.
    """
    what = f"checkpoint step-{step} cannot be named"
    manifest = Manifest(
        kind="checkpoint", code_version="", counts={"step": step, "parts": parts}, files=tuple(files),
        extra={"training_key": key},
    )  # fmt: skip
    patience(what, lambda: store.put(f"{PREFIX}/step-{step}/{MANIFEST}", manifest.to_bytes()))
    body = json.dumps({"step": step, "manifest": manifest.digest}).encode()
    patience(what, lambda: store.put(LATEST, body))
    log.info("checkpoint step-%d written and verified", step)
    try:
        patience("old checkpoints cannot be removed", lambda: _prune(store, step, keep, {f.path for f in files}))
    except StorageError as error:  # this one is named, and the next one tries again
        log.warning("old checkpoints below %s cannot be removed: %s", store.uri, error)


def _prune(store: Store, newest: int, keep: int, files: set[str]) -> None:
    """Remove all but the newest ``keep`` that are whole; of each its manifest first, so that no half looks whole."""
    keys = [(int(m[1]), info.key) for info in store.list(f"{PREFIX}/step-") if (m := _STEP.match(info.key))]
    # One above the newest is left over from a life that went further: it was refused. One without a manifest never was.
    whole = {step for step, key in keys if step <= newest and key == f"{PREFIX}/step-{step}/{MANIFEST}"}
    kept = sorted(whole, reverse=True)[:keep]
    mine = {f"{PREFIX}/step-{newest}/{path}" for path in (*files, MANIFEST)}
    for step, key in sorted(keys, key=lambda k: (k[0], not k[1].endswith(f"/{MANIFEST}"))):
        if step not in kept or (step == newest and key not in mine):
            store.delete(key)
