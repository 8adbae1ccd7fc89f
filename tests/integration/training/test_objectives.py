"""The two tunings as products: from files of tasks or instructions to a model that does what was learned."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from instructpt.api.runspec import PackRun, PreparedSource, ResolvedInput, RunSpec, StageResult, TokenizerRun
from instructpt.api.v1alpha1.sourceformats import Formatting, TaskCollection
from instructpt.cli.worker import MODULES
from instructpt.corpus.manifest import load_manifest
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import CorpusError
from instructpt.local.spec_file import parse_resource
from instructpt.plan import plan_resource
from instructpt.storage import open_store
from instructpt.synthesis import profiles
from instructpt.synthesis.model import Pair, Shot
from instructpt.telemetry.context import WorkerContext
from instructpt.training import prepare
from instructpt.training.encoder import TextEncoder
from instructpt.training.tokenshards import TokenShard

TAGS = ["<CON>", "</CON>", "<QUE>", "<ANS>", "</END>"]


def context(folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id="w", scratch=folder)


def packed(tmp_path: Path, tiny, source: PreparedSource, *, objective: str, length: int = 512) -> StageResult:
    pack = PackRun(source=source, tokenizer=tiny.tokenizer, sequence_length=length, objective=objective)
    spec = RunSpec(
        verb="prepare", owner_kind="TrainingJob", owner_name="t", step="s", output={"uri": str(tmp_path / "out")},
        code_version="test", pack=pack,
    )  # fmt: skip
    prepare.run(spec, context(tmp_path / "scratch"))
    return prepare.finalize(spec, context(tmp_path / "scratch"))


def learned(tmp_path: Path, tiny) -> list[tuple[str, str]]:
    """Each segment as text, and the part of it that the loss is taken on."""
    store = open_store(str(tmp_path / "out"))
    objects = json.loads(store.get("objects.json"))
    backend = TextEncoder(Path(tiny.tokenizer.uri))._backend
    found = []
    for key in objects.values() if "shards" not in objects else objects["shards"].values():
        shard = TokenShard(store.path(key))
        for row in (shard.row(i) for i in range(shard.num_rows)):
            for a, b in zip(row.segments, row.segments[1:], strict=False):
                tokens, mask = row.tokens[a:b].tolist(), row.targets[a:b].tolist()
                target = [t for t, m in zip(tokens, mask, strict=True) if m]
                found.append(tuple(backend.decode(t, skip_special_tokens=False) for t in (tokens, target)))
    return found


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_tasks_are_the_profiles_bytes_with_the_loss_on_pairs_alone(tiny, tmp_path):
    records = [
        {"context": f"the row {i} of {name}", "question": f"which row {n}", "answer": f"row {i} {n}"}
        for name in ("texts", "tokens") for i in range(5) for n in range(i % 3 + 1)
    ]  # fmt: skip
    for name in ("texts", "tokens"):
        write(tmp_path / "tasks" / f"{name}.jsonl", [r for r in records if name in r["context"]])
    tasks = TaskCollection(examples_per_sequence=2, examples_per_dataset=4)
    source = PreparedSource(name="t", format="tasks", uri=str(tmp_path / "tasks"), tasks=tasks)
    result = packed(tmp_path, tiny, source, objective="SynthesizerTuning")
    found = learned(tmp_path, tiny)
    assert len(found) == 4
    shots = {
        r["context"]: Shot(
            r["context"],
            tuple(Pair(o["question"], o["answer"]) for o in records if o["context"] == r["context"]),
        )
        for r in records
    }
    profile = profiles.load()
    taken = []
    for text, target in found:
        chain = [shots[part.partition(" </CON>")[0]] for part in text.split("<s> <CON> ")[1:]]
        assert len({shot.document.split()[-1] for shot in chain}) == 1, "a sequence holds one data set"
        # The bytes of the method (arXiv 2406.14491): what a synthesizer is asked, and then what it is to answer.
        last = chain[-1]
        answer = "\n\n".join(f"<QUE> {p.question} <ANS> {p.answer} </END>" for p in last.pairs) + "</s>"
        assert text == profile.render(chain[:-1], last.document) + answer
        assert target == "".join(s.text for s in profile.render_tuning(chain) if s.is_target)
        assert profile.parse(answer.removesuffix("</s>")) == list(last.pairs)
        taken += chain
    # One of five is over the cap in each data set: one of those with the fewest pairs.
    assert len(taken) == 8
    assert sum(len(s.pairs) == 1 for s in shots.values()) - sum(len(s.pairs) == 1 for s in taken) == 2
    counts = result.counts
    assert {name: counts[name] for name in ("examples", "over_cap", "documents", "items")} == {
        "examples": 10, "over_cap": 2, "documents": 8, "items": 4,
    }  # fmt: skip
    assert counts.get("too_long", 0) == counts["cut_items"] == 0


def test_what_is_longer_than_a_row_never_teaches_an_answer_without_its_document(tiny, tmp_path):
    long = [{"context": "the text " * 3, "question": [f"which token {i}" for i in range(12)], "answer": ["a row"] * 12}]
    longer = [{"context": "the text and the row " * 40, "question": "which", "answer": "a"}]
    write(tmp_path / "tasks" / "d.jsonl", [*long, *longer])
    source = PreparedSource(name="t", format="tasks", uri=str(tmp_path / "tasks"))
    counts = packed(tmp_path, tiny, source, objective="SynthesizerTuning", length=128).counts
    [(text, target)] = learned(tmp_path, tiny)
    pairs = profiles.load().parse(target)
    assert text.startswith("<s> <CON> the text the text")
    assert text.endswith("</END></s>")
    assert 0 < len(pairs) < 12
    assert (counts["too_long"], counts["cut_items"], counts["pairs"]) == (1, 0, 13)
    assert counts["pairs_cut"] == 13 - len(pairs)


def test_tasks_are_templated_where_no_synthesizer_learns_and_tokenizers_read_them(tiny, tmp_path):
    records = [{"context": f"the row {i}", "question": "which row", "answer": f"row {i}"} for i in range(3)]
    source = PreparedSource(name="t", format="tasks", uri=str(write(tmp_path / "tasks.jsonl", records)))
    assert packed(tmp_path, tiny, source, objective="Pretraining").counts["documents"] == 3
    [(text, target)] = learned(tmp_path, tiny)
    assert text == f"<s>{target}"
    assert not any(tag in text for tag in TAGS)
    assert all(record["context"] in text and record["answer"] in text for record in records)
    spec = RunSpec(
        verb="prepare", owner_kind="TrainingJob", owner_name="t", step="s", output={"uri": str(tmp_path / "tok")},
        code_version="test", tokenizer=TokenizerRun(source=source, vocab_size=300, profile="instruction-synthesizer"),
    )  # fmt: skip
    prepare.run(spec, context(tmp_path / "scratch"))
    assert prepare.finalize(spec, context(tmp_path / "scratch")).counts["documents"] == 1
    assert set(TAGS) <= set(TextEncoder(tmp_path / "tok").vocabulary)


@pytest.mark.parametrize(
    ("formatting", "prompt", "answer"),
    [
        (None, "What is it?", " A row."),
        (Formatting(name="newline"), "What is it?\n", "A row."),
        (Formatting(name="chat"), "<|user|>\nWhat is it?\n<|assistant|>\n", "A row."),
        (Formatting(template="{context}\nQ: {question}\nA: {answer}\n"), "a text\nQ: What is it?\nA:", " A row.\n"),
    ],
)
@pytest.mark.parametrize("objective", ["InstructionTuning", "Pretraining"])
def test_instructions_have_the_data_formatting_of_the_spec(tiny, tmp_path, formatting, prompt, answer, objective):
    path = write(tmp_path / "i.jsonl", [{"context": "a text", "question": "What is it?", "answer": "A row."}])
    source = PreparedSource(name="i", format="instructions", uri=str(path), formatting=formatting)
    packed(tmp_path, tiny, source, objective=objective)
    [(text, target)] = learned(tmp_path, tiny)
    assert text == f"<s>{prompt}{answer}</s>"
    assert target == (f"{answer}</s>" if objective == "InstructionTuning" else f"{prompt}{answer}</s>")


def test_a_field_that_no_record_has_is_named(tiny, tmp_path):
    path = write(tmp_path / "i.jsonl", [{"prompt": "p", "answer": "a"}])
    source = PreparedSource(name="i", format="instructions", uri=str(path))
    with pytest.raises(CorpusError, match=r"i\.jsonl:1: no field 'question' \(its fields are: prompt, answer\)"):
        packed(tmp_path, tiny, source, objective="InstructionTuning")


# ------------------------------------------------------------- round trip

FACTS = [
    ("Ada lives in Oslo. She has a blue boat.", [("Where does Ada live?", "Oslo"), ("What has she?", "a blue boat")]),
    ("Bo sold the mill to Kim.", [("Who sold the mill?", "Bo"), ("To whom?", "Kim")]),
    ("The lake is deep. No fish is in it.", [("Is the lake deep?", "Yes"), ("What is in it?", "No fish")]),
    ("Rain fell on Monday, snow on Friday.", [("When did snow fall?", "on Friday")]),
]


def finish(resource: Any, folder: Path, refs: Any = None) -> StageResult:
    """Carry out an object's stages in this process, and return the last one's result."""
    results: dict[str, StageResult] = {}
    while True:
        plan = plan_resource(resource, results, code_version="test", refs=refs)
        stage = plan.next_stage()
        if stage is None:
            return list(results.values())[-1]
        worker = importlib.import_module(MODULES[stage.kind])
        worker.run(stage.runspec, context(folder / "scratch"))
        results[stage.key] = worker.finalize(stage.runspec.finalizer(), context(folder / "scratch"))


def object_(kind: str, **spec: Any) -> Any:
    return parse_resource(
        {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": kind.lower()}, "spec": spec}
    )


def test_a_synthesizer_tuned_on_a_folder_of_tasks_writes_its_pairs_by_ref_and_by_path(tmp_path):
    records = [
        {"context": document, "question": question, "answer": answer}
        for document, pairs in FACTS for question, answer in pairs
    ]  # fmt: skip
    write(tmp_path / "tasks" / "facts.jsonl", records)
    write(tmp_path / "corpus.jsonl", [{"text": document} for document, _ in FACTS])
    tuned = finish(
        object_(
            "TrainingJob", objective="SynthesizerTuning", storage={"uri": str(tmp_path / "synthesizer")},
            init={
                "config": {
                    "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
                    "tie_word_embeddings": True,
                }
            },
            tokenizer={"train": {"vocabSize": 330, "profile": "instruction-synthesizer"}},
            mixture=[{
                "uri": str(tmp_path / "tasks"), "format": "tasks", "maxRepeats": 1000,
                "tasks": {"examplesPerSequence": 1},
            }],
            tokens=20_000, sequenceLength=128, globalBatchRows=2, microBatchRows=2,
            optimizer={"learningRate": 0.008}, checkpoint={"everySteps": 10_000},
        ),
        tmp_path,
    )  # fmt: skip
    corpus = finish(
        object_("Corpus", uri=str(tmp_path / "corpus.jsonl"), storage={"uri": str(tmp_path / "corpus")}), tmp_path
    )
    model = ResolvedInput(uri=tuned.uri, digest=tuned.digest)
    digests = {}
    for how, synthesizer in {
        "ref": {"ref": {"kind": "TrainingJob", "name": "tuning"}},
        "path": {"model": tuned.uri},
    }.items():
        job = object_(
            "SynthesisJob", input={"uri": corpus.uri, "digest": corpus.digest}, shots=1,
            storage={"uri": str(tmp_path / how)}, synthesizer=synthesizer, engine={"name": "transformers"},
            sampling={"maxTokens": 80, "contextWindow": 256},
        )  # fmt: skip
        waiting = plan_resource(job, {}, code_version="test", refs={("TrainingJob", "tuning"): None})
        assert (waiting.stages[0].runspec is None) == (how == "ref")
        made = finish(job, tmp_path, refs={("TrainingJob", "tuning"): model})
        pairs = {
            shot.text: [(pair.question, pair.answer) for pair in shot.pairs]
            for row in iter_augmented(ResolvedInput(uri=made.uri, digest=made.digest))
            for shot in row.shots
        }
        # It knows nothing but these documents, and answers with their pairs, in the format that the job parses.
        assert pairs == dict(FACTS)
        digests[how] = load_manifest(open_store(made.uri)).counts
    assert digests["ref"] == digests["path"]
