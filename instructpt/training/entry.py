"""The stage ``train``: one process where one rank is wanted, torchrun with several, a manifest at the end."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from typing import Any

from instructpt.api.runspec import RunSpec, StageResult
from instructpt.corpus.manifest import MANIFEST, FileEntry, Manifest, load_manifest, publish_manifest
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.storage import Store, open_store
from instructpt.telemetry.context import WorkerContext
from instructpt.training.checkpoint import latest_step
from instructpt.training.errors import PeerLostError, Preempted
from instructpt.training.outputs import is_whole, result_key
from instructpt.training.workspace import prepare_workspace

__all__ = ["Preempted", "finalize", "run"]

log = logging.getLogger(__name__)

_PLACES = ("uri", "digest", "endpoint", "region", "secretRef")


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Train, from the last checkpoint on where there is one.

    Raises:
        ConfigError: An input is missing, or spec, model and data do not fit.
        EnvironmentNotReadyError: A package or a device is missing.
        Preempted: ``ctx.stop`` was set and a verified checkpoint was written.
        TrainingError: The loss is not a number, or a rank died (PeerLostError: one whose cause stands elsewhere).
        StorageError: The storage failed.
    """
    output = open_store(spec.output.uri, access=spec.output)
    if finished(spec, output) is not None or is_whole(output, spec.work_key()):
        return
    if spec.train is None:
        raise ConfigError("the RunSpec has no section train", field="train", fix="plan the run again")
    for package in ("torch", "transformers", "deepspeed", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentNotReadyError(f"training needs {package}", fix="pip install 'instructpt[training]'")
    workspace = prepare_workspace(spec, output, ctx.scratch)
    section = spec.train
    if section.nodes * (section.gpus_per_node or section.processes_per_node) > 1:
        try:
            importlib.import_module("instructpt.training.launch").launch(spec, workspace, ctx)
        except PeerLostError:
            if not is_whole(output, spec.work_key()):
                raise
            log.info("a peer is gone, and the export is whole: this training was over")
        return
    with ctx.loading():
        loop: Any = importlib.import_module("instructpt.training.loop")
    loop.train(spec, workspace, loop.Surroundings(ranks=loop.Ranks(), stop=ctx.stop.is_set, progress=ctx.progress))


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Write the model's manifest once the export is there; with the manifest there, repeat its result."""
    output = open_store(spec.output.uri, access=spec.output)
    manifest = finished(spec, output)
    if manifest is None:
        if output.exists(MANIFEST) or not output.exists(result_key(spec.work_key())):
            # A manifest is that of another training, whose files lie here: a training deletes it before its own.
            return StageResult(uri=spec.output.uri, digest="", missing=1)
        manifest = _manifest(spec, json.loads(output.get(result_key(spec.work_key()))))
        publish_manifest(output, manifest)
    # The step of the last checkpoint is told, but in no digest: a training that was interrupted has others.
    last = latest_step(output)
    counts = {**manifest.counts, **({} if last is None else {"checkpoint": last})}
    return StageResult(uri=spec.output.uri, digest=manifest.digest, counts=counts, scores=manifest.extra["scores"])


def finished(spec: RunSpec, output: Store) -> Manifest | None:
    """The manifest, if it is that of this very training."""
    if not output.exists(MANIFEST):
        return None
    manifest = load_manifest(output)
    return manifest if manifest.extra.get("work_key") == spec.work_key() else None


def _manifest(spec: RunSpec, record: dict[str, Any]) -> Manifest:
    assert spec.train is not None
    return Manifest(
        kind="model",
        code_version=spec.code_version,
        inputs=record["inputs"],
        settings=without_places(spec.train.to_wire()),
        counts=record["counts"],
        files=tuple(FileEntry(path=p, bytes=b, sha256=s) for p, b, s in record["files"]),
        extra={"work_key": spec.work_key(), "scores": record["scores"], "receipt": record["receipt"]},
    )


def without_places(wire: Any) -> Any:
    """A wire object without where inputs lie and how they are reached: their digests are the lineage."""
    if isinstance(wire, dict):
        return {k: without_places(v) for k, v in wire.items() if k not in _PLACES}
    return [without_places(v) for v in wire] if isinstance(wire, list) else wire
