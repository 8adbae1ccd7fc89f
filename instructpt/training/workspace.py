"""What a node fetches once for its ranks, and where the ranks find it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from instructpt.api.runspec import RunSpec
from instructpt.errors import ConfigError
from instructpt.storage import Store
from instructpt.storage.models import fetch_model, model_digest
from instructpt.training.checkpoint import Resume, fetch_latest, training_key
from instructpt.training.dataset import Fetched, fetch_tokens
from instructpt.training.files import tokenizer_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Inputs of a training on this machine, verified.

    Attributes:
        scratch: Folder of this worker.
        tokenizer: Folder with the tokenizer.
        model: Folder with the model to start from; None trains from scratch.
        sources: By name.
        inputs: Lineage: name of each input -> digest.
        resume: Checkpoint to go on from.
        refused: Why newer checkpoints were not taken.
        broken: Steps of those among them that are damaged.
    """

    scratch: str
    tokenizer: str
    model: str | None
    sources: Mapping[str, Fetched]
    inputs: Mapping[str, str]
    resume: Resume | None
    refused: tuple[str, ...] = ()
    broken: tuple[int, ...] = ()

    def to_json(self) -> str:
        """For the ranks."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workspace:
        """Read what :meth:`to_json` wrote."""
        raw = json.loads(text)
        raw["sources"] = {
            k: Fetched(digest=v["digest"], paths=tuple(v["paths"]), shards=tuple(v["shards"]))
            for k, v in raw["sources"].items()
        }
        raw["resume"] = None if raw["resume"] is None else Resume(**raw["resume"])
        raw["refused"], raw["broken"] = tuple(raw["refused"]), tuple(raw["broken"])
        return cls(**raw)


def prepare_workspace(spec: RunSpec, store: Store, scratch: Path) -> Workspace:
    """Fetch and verify everything that a training reads.

    Raises:
        ConfigError: An input does not exist or does not fit the run.
        CorpusError: Token shards are missing or corrupt.
        StorageError: The storage failed.
    """
    section = spec.train
    if section is None:
        raise ConfigError("the RunSpec has no section train", field="train", fix="plan the run again")
    if len({source.name for source in section.sources}) < len(section.sources):
        raise ConfigError("names of sources must differ", field="mixture", fix="set name")
    scratch.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_folder(section.tokenizer, scratch / "models")
    inputs = {"tokenizer": tokenizer.digest}
    model = None
    if section.init.model is not None:
        model = fetch_model(section.init.model, scratch / "models")
        inputs["init"] = model_digest(model)
    sources = {}
    validation = () if section.validation is None else (section.validation.source,)
    for source in (*section.sources, *validation):
        fetched = fetch_tokens(
            source, scratch / "tokens", sequence_length=section.sequence_length, tokenizer=tokenizer.content
        )
        sources[source.name] = fetched
        inputs[f"source:{source.name}"] = fetched.digest
    found = fetch_latest(store, training_key(spec), scratch / "resume")
    return Workspace(
        scratch=str(scratch),
        tokenizer=str(tokenizer.folder),
        model=None if model is None else str(model),
        sources=sources,
        inputs=inputs,
        resume=found.resume,
        refused=found.refused,
        broken=found.broken,
    )
