"""A small synthesizer for benchmarks: a Llama of about 3.4M parameters, tuned by the product on generated pairs.

It reads the profile's prompts, writes pairs that parse and ends by itself, so that lengths are those of a model and not
of a setting. Built once (about 5 minutes on two cores) into the user's cache, under a hash of its recipe; the same seed
gives the same documents everywhere.

    python benchmarks/synthesis_fixture.py        # prints its folder
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import cache

NAMES = [a + b + c for a in ("Bro", "Ka", "Lu", "Mi", "Or", "Ta", "Ve", "Zo") for b in ("l", "m", "n", "r") for c in ("an", "e", "id", "um")]  # fmt: skip  # noqa: E501
FACTS = {
    "colour": ("red", "blue", "green", "grey", "white", "amber"),
    "keeper": ("a baker", "a sailor", "an old monk", "the miller", "a young smith"),
    "harbour": ("the north quay", "the long pier", "the stone basin", "the river mouth"),
    "cargo": ("salt and wool", "copper bars", "dried fruit", "barrels of oil", "timber"),
    "season": ("early spring", "late summer", "the first frost", "mid winter"),
    "custom": ("to ring a bell", "to light a lamp", "to share bread", "to tell a story"),
    "price": ("two coins", "nine coins", "forty coins", "a silver ring"),
    "road": ("the hill path", "the old bridge", "the forest track", "the sea wall"),
}
SEED = 20261121


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What decides the model. A change of any number is another model."""

    version: int = 1
    documents: int = 2000
    facts: tuple[int, int] = (6, 20)
    shots: int = 5
    vocab_size: int = 640
    hidden_size: int = 256
    intermediate_size: int = 672
    layers: int = 4
    heads: int = 4
    positions: int = 4096
    sequence_length: int = 1024
    tokens: int = 300_000
    learning_rate: float = 3e-3

    @property
    def key(self) -> str:
        """Hash of the recipe and of this file's texts."""
        what = json.dumps([asdict(self), NAMES, FACTS, SEED], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]


def facts_of(source: random.Random, count: int) -> list[tuple[str, str, str]]:
    """Name, attribute and value of so many facts."""
    found = []
    for _ in range(count):
        attribute = source.choice(list(FACTS))
        found.append((source.choice(NAMES), attribute, source.choice(FACTS[attribute])))
    return found


def text_of(facts: list[tuple[str, str, str]]) -> str:
    """A document: a sentence a fact."""
    return " ".join(f"The {attribute} of {name} is {value}." for name, attribute, value in facts)


def pairs_of(facts: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Questions on the first facts, two to four by the length of the document, with their answers."""
    count = 2 + len(facts) % 3
    return [
        (f"What is the {attribute} of {name}?", f"The {attribute} of {name} is {value}.")
        for name, attribute, value in facts[:count]
    ]


def documents(count: int, facts: tuple[int, int], *, seed: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Documents and their pairs, drawn from a seed."""
    source = random.Random(seed)
    for _ in range(count):
        found = facts_of(source, source.randint(*facts))
        yield text_of(found), pairs_of(found)


def folder_of(recipe: Recipe) -> Path:
    """Where the model of a recipe lies."""
    return cache() / "synthesizer" / recipe.key


def synthesizer(recipe: Recipe | None = None) -> Path:
    """The model's folder; it is built, in a process of its own, if it is not there.

    Raises:
        SystemExit: The build failed; with what it said.
    """
    folder = folder_of(recipe or Recipe())
    if not (folder / "manifest.json").exists():
        done = subprocess.run([sys.executable, __file__], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit("the synthesizer for benchmarks could not be trained")
    return folder


def build(recipe: Recipe) -> Path:
    """Train the model; another process that wants the same one waits for it."""
    folder = folder_of(recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{recipe.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "manifest.json").exists():
            return folder
        work = folder.with_suffix(".building")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _train(recipe, work)
        (work / "model").replace(folder)
        shutil.rmtree(work)
    return folder


def _train(recipe: Recipe, work: Path) -> None:
    from instructpt.api.runspec import (
        InitRun,
        PackRun,
        PreparedSource,
        ResolvedInput,
        TokenizerRun,
        TrainRun,
        TrainSource,
    )
    from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Optimizer, Schedule
    from instructpt.training import entry, prepare

    set_ = _write_pairs(recipe, work)
    text = PreparedSource(name="text", format="jsonl", uri=str(work / "text.jsonl"))
    tokenizer = TokenizerRun(source=text, vocab_size=recipe.vocab_size, profile="instruction-synthesizer")
    made = _stage(prepare, work, "tokenizer", "prepare", tokenizer=tokenizer)
    pairs = PreparedSource(name="pairs", format="augmented", uri=str(set_))
    pack = PackRun(source=pairs, tokenizer=made, sequence_length=recipe.sequence_length, objective="SynthesizerTuning")
    tokens = _stage(prepare, work, "tokens", "prepare", pack=pack)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": recipe.positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    train = TrainRun(
        objective="SynthesizerTuning",
        init=InitRun(config=config),
        tokenizer=made,
        sources=(TrainSource(name="pairs", weight=1.0, max_repeats=100, uri=tokens.uri, digest=tokens.digest),),
        tokens=recipe.tokens,
        sequence_length=recipe.sequence_length,
        global_batch_rows=1,
        micro_batch_rows=1,
        optimizer=Optimizer(learning_rate=recipe.learning_rate),
        schedule=Schedule(),
        gradient_clip=1.0,
        precision="auto",
        deepspeed=DeepSpeed(),
        checkpoint=CheckpointSpec(every_steps=100_000, keep=1),
        seed=1,
    )
    model: ResolvedInput = _stage(entry, work, "model", "train", train=train)
    print(f"trained {model.uri}", file=sys.stderr)


def _stage(module: Any, work: Path, step: str, verb: Any, **section: Any) -> Any:
    """Run and close one stage; where its result lies."""
    from instructpt.api.base import StorageSpec
    from instructpt.api.runspec import ResolvedInput, RunSpec
    from instructpt.api.version import VERSION
    from instructpt.telemetry.context import WorkerContext

    spec = RunSpec(
        verb=verb,
        owner_kind="TrainingJob",
        owner_name="benchmark",
        step=step,
        output=StorageSpec(uri=str(work / step)),
        code_version=VERSION,
        **section,
    )
    scratch = work / "scratch" / step
    scratch.mkdir(parents=True)
    context = WorkerContext(worker_id="benchmark", scratch=scratch)
    module.run(spec, context)
    result = module.finalize(spec.finalizer(), context)
    assert result.missing == 0
    return ResolvedInput(uri=result.uri, digest=result.digest)


def _write_pairs(recipe: Recipe, work: Path) -> Path:
    """The tuning set as an augmented corpus of one shard, and its text for the tokenizer."""
    from instructpt.api.version import VERSION
    from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, write_chains
    from instructpt.corpus.manifest import Manifest, ShardEntry, publish_manifest
    from instructpt.storage import open_store
    from instructpt.storage.hashing import sha256_of_file
    from instructpt.synthesis import profiles
    from instructpt.synthesis.model import Pair, Shot

    folder = work / "pairs"
    folder.mkdir()
    shots = [
        ShotRow(
            document=f"d{number}",
            text=text,
            pairs=tuple(PairRow(question=q, answer=a, kind="free") for q, a in pairs),
            verdict="augmented",
            reason="",
            attempts=1,
            prompt_tokens=0,
            completion_tokens=0,
        )
        for number, (text, pairs) in enumerate(documents(recipe.documents, recipe.facts, seed=SEED))
    ]
    profile, rows = profiles.load(), []
    with (work / "text.jsonl").open("w") as lines:
        for number, start in enumerate(range(0, len(shots), recipe.shots)):
            chain = tuple(shots[start : start + recipe.shots])
            rows.append(ChainRow(id=f"0/{number}", text="-", shots=chain, templates=(), seed=0))
            told = profile.render_tuning(
                [Shot(s.text, tuple(Pair(p.question, p.answer) for p in s.pairs)) for s in chain]
            )
            lines.write(json.dumps({"text": "".join(segment.text for segment in told)}) + "\n")
    path = folder / "0.parquet"
    write_chains(path, rows)
    entry = ShardEntry(id="0", counts={"documents": len(shots)}, bytes=path.stat().st_size, sha256=sha256_of_file(path))
    manifest = Manifest(kind="augmented", code_version=VERSION, shards=(entry,), counts={"documents": len(shots)})
    publish_manifest(open_store(str(folder)), manifest, objects={"0": "0.parquet"})
    return folder


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    print(build(Recipe()))
