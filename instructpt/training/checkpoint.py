"""Checkpoints: written in the background, read back, verified, and only then named by ``LATEST``.

``<output>/checkpoints/step-<N>/`` holds the state by parameter name in fp32, what was recorded so far, and a
``manifest.json`` with the sha256 of each file, written last. A checkpoint belongs to one training: the hash of what
decides it stands in the manifest, and one of another training is never resumed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from instructpt.api.runspec import RunSpec, canonical_json
from instructpt.corpus.manifest import MANIFEST, Manifest, digest_of, parse_manifest
from instructpt.errors import InstructPTError, NotFoundError, StorageError
from instructpt.storage import Store
from instructpt.storage.hashing import sha256_of_file
from instructpt.training.background import Background
from instructpt.training.files import file_entries

log = logging.getLogger(__name__)

PREFIX = "checkpoints"
LATEST = f"{PREFIX}/LATEST"
STATE = "state.safetensors"
TRAINER = "trainer.json"
_STEP = re.compile(rf"^{PREFIX}/step-(\d+)/")


def training_key(spec: RunSpec) -> str:
    """Hash of what decides a training, without how many ranks do it and how often it is saved."""
    assert spec.train is not None
    wire = spec.train.to_wire()
    for name in ("nodes", "processesPerNode", "gpusPerNode", "microBatchRows", "checkpoint", "deepspeed"):
        wire.pop(name, None)
    wire["codeVersion"] = spec.code_version
    return digest_of(canonical_json(wire).encode())[7:23]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A verified checkpoint on this machine."""

    step: int
    folder: str


def fetch_latest(store: Store, key: str, scratch: Path) -> Resume | None:
    """The newest checkpoint that is whole and of this training; None where there is none.

    One that is corrupt or of another training is refused with a logged reason, and the one before it is tried.
    """
    newest = _latest(store)
    steps = sorted({int(m[1]) for info in store.list(f"{PREFIX}/step-") if (m := _STEP.match(info.key))}, reverse=True)
    # One above LATEST was never verified: its writer died.
    for step in (s for s in steps if newest is not None and s <= newest):
        reason = _fetch(store, step, key, scratch / f"step-{step}")
        if reason is None:
            log.info("resuming after step %d", step)
            return Resume(step=step, folder=str(scratch / f"step-{step}"))
        log.warning("checkpoint step-%d below %s is refused: %s", step, store.uri, reason)
    return None


def _latest(store: Store) -> int | None:
    try:
        return int(json.loads(store.get(LATEST))["step"])
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s below %s cannot be read (%s): all checkpoints are looked at", LATEST, store.uri, error)
        return 1 << 62


def _fetch(store: Store, step: int, key: str, folder: Path) -> str | None:
    """Download a checkpoint; the reason if it cannot be used."""
    base = f"{PREFIX}/step-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        manifest = parse_manifest(store.get(f"{base}/{MANIFEST}"), where=f"{base}/{MANIFEST}")
        if manifest.extra.get("training_key") != key:
            return "it is of a training with another spec"
        for file in manifest.files:
            store.download(f"{base}/{file.path}", folder / file.path)
            if sha256_of_file(folder / file.path) != file.sha256:
                return f"{file.path} is not the file that was written (truncated or changed)"
        if {STATE, TRAINER} - {file.path for file in manifest.files}:
            return "its manifest names no state"
    except NotFoundError as error:
        return f"it is incomplete: {error}"
    except InstructPTError as error:
        return str(error)
    return None


class Saver:
    """Writes checkpoints of one run in a thread of its own; on rank 0.

    Args:
        store: Of the run's output.
        key: From :func:`training_key`.
        scratch: Where files are written before they are uploaded.
        keep: How many stay.
        done: Is told the step once its checkpoint is verified and named.
    """

    def __init__(self, store: Store, key: str, scratch: Path, *, keep: int, done: Callable[[int], object]) -> None:
        self._store = store
        self._key = key
        self._scratch = scratch
        self._keep = keep
        self._done = done
        self._background = Background()

    def save(self, step: int, write: Callable[[Path], object]) -> None:
        """Begin to write a checkpoint; waits for the one before.

        Args:
            step: Steps done.
            write: Fills a folder with the files, from memory that nobody changes meanwhile.

        Raises:
            StorageError: The one before could not be stored.
        """
        self.wait()
        self._background.start(lambda: self._run(step, write), name=f"checkpoint-{step}")

    def wait(self, seconds: float | None = None) -> bool:
        """Whether nothing is being written any more, at the latest after so many seconds.

        Raises:
            StorageError: It could not be stored.
        """
        return self._background.wait(seconds)

    def _run(self, step: int, write: Callable[[Path], object]) -> None:
        folder = self._scratch / f"saving-{step}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write(folder)
            self._upload(step, folder)
            self._prune(step)
            self._done(step)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, step: int, folder: Path) -> None:
        base = f"{PREFIX}/step-{step}"
        files = file_entries(folder)
        for file in files:
            self._store.put_file(f"{base}/{file.path}", folder / file.path)
        for file in files:
            back = folder / f"{file.path}.back"
            self._store.download(f"{base}/{file.path}", back)
            if sha256_of_file(back) != file.sha256:
                raise StorageError(f"{self._store.uri}/{base}/{file.path} reads back different from what was written")
            back.unlink()
        manifest = Manifest(
            kind="checkpoint", code_version="", counts={"step": step}, files=files, extra={"training_key": self._key}
        )
        self._store.put(f"{base}/{MANIFEST}", manifest.to_bytes())
        self._store.put(LATEST, json.dumps({"step": step, "manifest": manifest.digest}).encode())
        log.info("checkpoint step-%d written and verified", step)

    def _prune(self, newest: int) -> None:
        """Remove all but the newest ``keep``; of each its manifest first, so that no half of one looks whole."""
        keys = [(int(m[1]), info.key) for info in self._store.list(f"{PREFIX}/step-") if (m := _STEP.match(info.key))]
        # A step above the newest is left over from a life that went further; it was refused or never finished.
        kept = sorted({step for step, _ in keys if step <= newest}, reverse=True)[: self._keep]
        for step, key in sorted(keys, key=lambda k: (k[0], not k[1].endswith(f"/{MANIFEST}"))):
            if step not in kept:
                self._store.delete(key)
