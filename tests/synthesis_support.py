"""What the tests of synthesis share: a corpus, a RunSpec, a tokenizer, scripted engines, a tiny tuned synthesizer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import InspectRun, ResolvedInput, RunSpec, StageResult, SynthesizeRun
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus import inspect as corpus_inspect
from instructpt.corpus.document import Document
from instructpt.corpus.shards import iter_augmented
from instructpt.storage import open_store
from instructpt.synthesis import worker
from instructpt.synthesis.engine import BaseEngine, Completion, GenerationRequest
from instructpt.synthesis.microshard import MicroShard, OpenShard
from instructpt.synthesis.stream import Stream
from instructpt.synthesis.tokenization import PromptTokenizer
from instructpt.synthesis.writers import Recipe, Writer
from instructpt.telemetry.context import WorkerContext

DRIVER = Path(__file__).with_name("synthesis_driver.py")
SPECIAL = ("<s>", "</s>")
GOOD = "<QUE> What is it? <ANS> A thing. </END>\n\n<QUE> Who knows? <ANS> Nobody here. </END>"


class CharacterBackend:
    """A tokenizer of one token a character, with BOS and EOS as tokens of their own."""

    def __init__(self) -> None:
        self._vocabulary = {token: index for index, token in enumerate(SPECIAL)}

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocabulary)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [0] if add_special_tokens else []
        while text:
            token = next((t for t in SPECIAL if text.startswith(t)), text[0])
            ids.append(self._vocabulary[token] if token in self._vocabulary else ord(token) + len(SPECIAL))
            text = text[len(token) :]
        return ids

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(SPECIAL[i] if i < len(SPECIAL) else chr(i - len(SPECIAL)) for i in ids)


class WholeTextBackend:
    """A tokenizer of one token for a whole text, so that no prompt is ever too long; BOS and EOS are tokens."""

    def __init__(self) -> None:
        self._texts = list(SPECIAL)

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(SPECIAL)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self._texts.append(text)
        return [*([0] if add_special_tokens else []), len(self._texts) - 1]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(self._texts[i] for i in ids)


class ScriptedEngine(BaseEngine):
    """Answers prompts by a function of their text; an exception it returns is raised. Finishes in a shuffled order."""

    def __init__(
        self, script: Callable[[str], str | Exception], *, seed: int = 0, window: int = 100_000, backend: Any = None
    ) -> None:
        super().__init__(PromptTokenizer(backend or CharacterBackend()), window, 8)
        self._script = script
        self._rng = random.Random(seed)
        self.prompts: list[str] = []

    async def generate(self, request: GenerationRequest) -> Completion:
        prompt = self.tokenizer.decode(request.prompt_ids)
        self.prompts.append(prompt)
        for _ in range(self._rng.randrange(6)):
            await asyncio.sleep(0)
        answer = self._script(prompt)
        if isinstance(answer, Exception):
            raise answer
        ids = (*self.tokenizer.encode(answer), *request.stop_ids[:1])
        return Completion(token_ids=ids, text=answer, finish_reason="stop")


class ListShards:
    """Micro-shards from a list, for a stream; keeps what comes out."""

    def __init__(self, shards: Sequence[OpenShard]) -> None:
        self.waiting = list(shards)
        self.opened: list[str] = []
        self.made: dict[str, MicroShard] = {}
        self.losing: list[str] = []
        self.dropped: list[str] = []

    async def next(self) -> OpenShard | None:
        await asyncio.sleep(0)
        if not self.waiting:
            return None
        shard = self.waiting.pop(0)
        self.opened.append(shard.name)
        return shard

    async def done(self, shard: OpenShard) -> None:
        self.made[shard.name] = shard.close()

    def lost(self) -> list[str]:
        lost, self.losing = self.losing, []
        return lost

    async def drop(self, shard: str) -> None:
        self.dropped.append(shard)


def synthesize(
    documents: Sequence[Document], recipe: Recipe, writer: Writer, *, concurrency: int, name: str = "s"
) -> MicroShard:
    """One micro-shard through a stream of its own."""

    async def main() -> MicroShard:
        shards = ListShards([OpenShard(name, documents, recipe)])
        await Stream(shards, writer, lanes=concurrency).run()
        return shards.made[name]

    return asyncio.run(main())


def context(scratch: Path, worker_id: str = "worker-0") -> WorkerContext:
    return WorkerContext(worker_id=worker_id, scratch=scratch)


def make_corpus(folder: Path, texts: Sequence[str], *, per_shard: int = 4, split: Split | None = None) -> ResolvedInput:
    """An inspected corpus of these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "raw.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    spec = RunSpec(
        verb="inspect",
        owner_kind="Corpus",
        owner_name="c",
        step="inspect",
        output=StorageSpec(uri=str(folder / "corpus")),
        code_version="test",
        inspect=InspectRun(source=CorpusSource(uri=str(source)), split=split or Split(), documents_per_shard=per_shard),
    )
    ctx = context(folder / "scratch")
    corpus_inspect.run(spec, ctx)
    result = corpus_inspect.finalize(spec.finalizer(), ctx)
    return ResolvedInput(uri=result.uri, digest=result.digest)


def make_spec(corpus: ResolvedInput, output: Path | str, *, model: Path | None = None, **section: Any) -> RunSpec:
    """A RunSpec of the stage; ``mined`` unless a model is given. ``settings`` is on the wire's terms."""
    settings: dict[str, Any] = {"engine": {"name": "mined"}, "leaseSeconds": 5, **section.pop("settings", {})}
    defaults: dict[str, Any] = {"strategy": "mined"}
    if model is not None:
        defaults = {"strategy": "instruction-synthesizer", "model": ResolvedInput(uri=str(model))}
        settings = {
            "engine": {"name": "transformers"},
            "leaseSeconds": 5,
            **{k: v for k, v in settings.items() if k != "engine" or v["name"] != "mined"},
        }
    parallelism = int(section.pop("parallelism", 1))
    return RunSpec(
        verb="synthesize",
        owner_kind="SynthesisJob",
        owner_name="s",
        step="synthesize",
        output=StorageSpec(uri=str(output)),
        parallelism=parallelism,
        code_version="test",
        synthesize=SynthesizeRun(
            corpus=corpus, settings=SynthesisSettings.model_validate(settings), **{**defaults, **section}
        ),
    )


def run_stage(spec: RunSpec, scratch: Path) -> StageResult:
    """Run the only worker and close the stage."""
    worker.run(spec, context(scratch))
    return worker.finalize(spec.finalizer(), context(scratch))


def fingerprint(spec: RunSpec) -> tuple[bytes, list[Any]]:
    """The manifest's bytes and every row: what has to be equal after any kill."""
    store = open_store(spec.output.uri)
    return store.get("manifest.json"), list(iter_augmented(ResolvedInput(uri=spec.output.uri)))


def start_driver(
    spec: RunSpec, folder: Path, worker_id: str, *args: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A worker in a process of its own; ``env`` is added to this one's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"spec-{worker_id}.json"
    path.write_text(spec.to_json())
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(path), worker_id, str(folder / worker_id), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output of a worker."""
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


KILLED = -signal.SIGKILL


def make_tokenizer(folder: Path, *, special: Mapping[str, str] | None = None, vocabulary: int = 400) -> None:
    """A byte-level BPE tokenizer trained on a few sentences and the profile's tags, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "eos_token": "</s>"} if special is None else dict(special)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([GOOD, " <CON> a document </CON>\n\n"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_model(folder: Path, *, positions: int = 512, steps: int = 0, tokenizer: bool = True, **config: Any) -> Path:
    """A tiny Llama; with enough ``steps`` of training it answers every document with the two pairs of ``GOOD``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        make_tokenizer(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape))
    if steps:
        encode = AutoTokenizer.from_pretrained(folder).encode
        _train(model, lambda text: encode(text, add_special_tokens=False), steps)
    model.save_pretrained(folder)
    return folder


def _train(model: Any, encode: Callable[[str], list[int]], steps: int) -> None:
    import torch

    rng = random.Random(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    learned = 0
    for _ in range(steps):
        ids: list[int] = []
        labels: list[int] = []
        for _ in range(2):
            prompt = encode(f"<s> <CON> {words(rng, rng.randrange(3, 25))} </CON>\n\n")
            pairs = encode(GOOD + "</s>")
            ids += prompt + pairs
            labels += [-100] * len(prompt) + pairs
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learned = learned + 1 if float(loss.detach()) < 0.02 else 0
        if learned == 5:
            break
    torch.set_num_threads(threads)


_WORDS = ("river", "stone", "garden", "letter", "winter", "engine", "paper", "market", "silver", "window", "forest")


def words(rng: random.Random, count: int) -> str:
    """Some words, as a sentence."""
    return " ".join(rng.choice(_WORDS) for _ in range(count)) + "."


def sentences(count: int, *, seed: int = 0, length: tuple[int, int] = (5, 30)) -> list[str]:
    """Documents of one sentence each."""
    rng = random.Random(seed)
    return [f"The {i}th note says: {words(rng, rng.randrange(*length))}" for i in range(count)]
