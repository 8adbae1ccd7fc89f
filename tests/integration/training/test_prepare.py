from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import InspectRun, PackRun, PreparedSource, ResolvedInput, RunSpec, TokenizerRun
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.corpus import inspect
from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, write_chains
from instructpt.corpus.manifest import Manifest, ShardEntry, load_manifest, load_objects, publish_manifest
from instructpt.corpus.shards import iter_corpus
from instructpt.errors import ConfigError, CorpusError, TrainingError
from instructpt.storage import open_store
from instructpt.storage.hashing import sha256_of_file
from instructpt.telemetry.context import WorkerContext
from instructpt.training import encodings, prepare, tokenizing
from instructpt.training.encoder import TextEncoder
from instructpt.training.tokenshards import TokenShard

BOS, EOS = 0, 1


def runspec(output: Path, verb: str = "prepare", **section) -> RunSpec:
    return RunSpec(
        verb=verb, owner_kind="TrainingJob", owner_name="t", step="s", output=StorageSpec(uri=str(output)),
        code_version="test", **section,
    )  # fmt: skip


def ctx(folder: Path, worker: str = "w") -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id=worker, scratch=folder)


def packed(output: Path, scratch: Path, tiny, source: PreparedSource, *, objective="Pretraining", length=64):
    pack = PackRun(source=source, tokenizer=tiny.tokenizer, sequence_length=length, objective=objective)
    spec = runspec(output, pack=pack)
    prepare.run(spec, ctx(scratch))
    return prepare.finalize(spec, ctx(scratch))


def rows(output: Path):
    store = open_store(str(output))
    manifest, objects = load_manifest(store), load_objects(store)
    for entry in manifest.shards:
        path = store.path(objects[entry.id])
        assert sha256_of_file(path) == entry.sha256
        shard = TokenShard(path)
        yield from (shard.row(i) for i in range(shard.num_rows))


def segments(output: Path):
    """Tokens and targets of each segment."""
    for row in rows(output):
        for a, b in zip(row.segments, row.segments[1:], strict=False):
            yield row.tokens[a:b].tolist(), row.targets[a:b].tolist()


def decoded(output: Path, tiny) -> Counter:
    backend = TextEncoder(Path(tiny.tokenizer.uri))._backend
    return Counter(backend.decode(tokens, skip_special_tokens=False) for tokens, _ in segments(output))


def texts(tiny) -> list[str]:
    lines = [line for path in sorted(tiny.text.iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines]


def test_every_text_comes_back_between_bos_and_eos(tiny, tmp_path):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    result = packed(tmp_path / "out", tmp_path / "s", tiny, source, length=512)
    assert decoded(tmp_path / "out", tiny) == Counter(f"<s>{text}</s>" for text in texts(tiny))
    assert result.counts["items"] == result.counts["documents"] == len(texts(tiny))
    assert result.counts["cut_items"] == 0
    assert result.counts["tokens"] + result.counts["padding"] == result.counts["rows"] * 512
    assert result.counts["loss_tokens"] == result.counts["tokens"] - result.counts["items"]
    assert result.scores["fill"] == pytest.approx(result.counts["tokens"] / (result.counts["rows"] * 512), abs=1e-6)


def test_long_texts_are_cut_and_counted_and_no_token_is_lost(tiny, tmp_path):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    whole = packed(tmp_path / "a", tmp_path / "s", tiny, source, length=512)
    cut = packed(tmp_path / "b", tmp_path / "s", tiny, source, length=64)
    assert cut.counts["cut_items"] > 0
    assert cut.counts["tokens"] == whole.counts["tokens"]
    assert cut.counts["documents"] == whole.counts["documents"]


def test_two_workers_give_the_manifest_of_one(tiny, tmp_path):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    one = packed(tmp_path / "one", tmp_path / "s", tiny, source)
    pack = PackRun(source=source, tokenizer=tiny.tokenizer, sequence_length=64, objective="Pretraining")
    spec = runspec(tmp_path / "two", pack=pack).model_copy(update={"parallelism": 2})
    threads = [threading.Thread(target=prepare.run, args=(spec, ctx(tmp_path / w, w))) for w in ("w0", "w1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    two = prepare.finalize(spec, ctx(tmp_path / "w0"))
    shards = [load_manifest(open_store(str(tmp_path / name))).shards for name in ("one", "two")]
    assert shards[0] == shards[1]
    assert one.counts == two.counts
    assert prepare.finalize(spec, ctx(tmp_path / "w0")) == two


def test_unfinished_work_gives_no_manifest(tiny, tmp_path):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    pack = PackRun(source=source, tokenizer=tiny.tokenizer, sequence_length=64, objective="Pretraining")
    spec = runspec(tmp_path / "out", pack=pack)
    stopping = ctx(tmp_path / "s")
    stopping.stop.set()
    prepare.run(spec, stopping)
    assert prepare.finalize(spec, ctx(tmp_path / "s")).missing == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare.run(spec, ctx(tmp_path / "s"))
    assert prepare.finalize(spec, ctx(tmp_path / "s")).missing == 0


def test_a_corpus_gives_the_documents_of_its_part(tiny, tmp_path):
    spec = runspec(
        tmp_path / "corpus", "inspect",
        inspect=InspectRun(
            source=CorpusSource(uri=str(tiny.text)), split=Split(tune=0.3, train=0.5, held_out=0.2),
            documents_per_shard=40,
        ),
    )  # fmt: skip
    inspect.run(spec, ctx(tmp_path / "s"))
    corpus = inspect.finalize(spec, ctx(tmp_path / "s"))
    place = {"uri": corpus.uri, "digest": corpus.digest}
    wanted = [d.text for d in iter_corpus(ResolvedInput(**place), "train")]
    source = PreparedSource(name="c", format="corpus", split="train", **place)
    result = packed(tmp_path / "out", tmp_path / "s", tiny, source, length=512)
    assert decoded(tmp_path / "out", tiny) == Counter(f"<s>{t}</s>" for t in wanted)
    assert result.counts["documents"] == len(wanted)
    manifest = load_manifest(open_store(str(tmp_path / "out")))
    assert len(manifest.shards) > 1
    assert manifest.inputs == {"source": corpus.digest, "tokenizer": tiny.tokenizer.digest}
    some = source.model_copy(update={"max_documents": 10})
    assert packed(tmp_path / "some", tmp_path / "s", tiny, some, length=512).counts["documents"] == 10


def chain(number: int, shots: list[tuple[str, list[tuple[str, str]]]], text: str) -> ChainRow:
    made = tuple(
        ShotRow(
            document=f"d{number}-{i}", text=document, attempts=1, prompt_tokens=0, completion_tokens=0,
            pairs=tuple(PairRow(question=q, answer=a, kind="free") for q, a in pairs),
            verdict="augmented" if pairs else ("raw" if document else "dead-letter"), reason="",
        )
        for i, (document, pairs) in enumerate(shots)
    )  # fmt: skip
    return ChainRow(id=f"0/{number}", text=text, shots=made, templates=(), seed=1)


@pytest.fixture
def augmented(tmp_path) -> PreparedSource:
    chains = [
        chain(
            0, [("first text", [("q one", "a one"), ("q two", "a two")]), ("second text", [("q", "a")])], "chain zero"
        ),
        chain(1, [("third text", [])], "third text"),
        chain(2, [("", [])], ""),
    ]
    folder = tmp_path / "augmented"
    (folder / "data").mkdir(parents=True)
    write_chains(folder / "data" / "x.parquet", chains)
    entry = ShardEntry(id="00000", counts={"documents": 4}, sha256=sha256_of_file(folder / "data" / "x.parquet"))
    manifest = Manifest(kind="augmented", code_version="test", shards=(entry,), counts={"documents": 4})
    digest = publish_manifest(open_store(str(folder)), manifest, objects={"00000": "data/x.parquet"})
    return PreparedSource(name="a", format="augmented", uri=str(folder), digest=digest)


def test_a_chain_is_one_text_and_dead_letters_give_none(tiny, tmp_path, augmented):
    result = packed(tmp_path / "out", tmp_path / "s", tiny, augmented)
    assert decoded(tmp_path / "out", tiny) == Counter(["<s>chain zero</s>", "<s>third text</s>"])
    assert (result.counts["items"], result.counts["documents"]) == (2, 3)


def test_a_chain_longer_than_a_row_is_cut_where_its_second_document_begins(tiny, tmp_path):
    first, second = ("the model reads a text " * 12).strip(), ("and writes pairs of questions " * 8).strip()
    text = f"{first}\n\nQ what A that\n\n{second}\n\nQ when A then"
    folder = tmp_path / "augmented"
    (folder / "data").mkdir(parents=True)
    write_chains(folder / "data" / "x.parquet", [chain(0, [(first, [("what", "that")]), (second, [("w", "t")])], text)])
    entry = ShardEntry(id="0", counts={"documents": 2}, sha256=sha256_of_file(folder / "data" / "x.parquet"))
    made = Manifest(kind="augmented", code_version="t", shards=(entry,))
    publish_manifest(open_store(str(folder)), made, objects={"0": "data/x.parquet"})
    source = PreparedSource(name="a", format="augmented", uri=str(folder))
    result = packed(tmp_path / "out", tmp_path / "s", tiny, source, length=128)
    assert decoded(tmp_path / "out", tiny) == Counter(
        [f"<s>{first}\n\nQ what A that\n\n", f"{second}\n\nQ when A then</s>"]
    )
    counts = (result.counts[name] for name in ("items", "documents", "cut_items", "cut_documents"))
    assert tuple(counts) == (1, 2, 1, 0)


def test_a_shard_on_which_the_fast_tokenizer_errs_is_encoded_by_the_other_one(tiny, tmp_path, monkeypatch):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    right = packed(tmp_path / "right", tmp_path / "s", tiny, source)
    assert (right.counts["texts_fast"], right.counts["texts_slow"]) == (300, 0)
    assert right.counts["texts_sampled"] == 8
    with monkeypatch.context() as patched:
        patched.setattr(tokenizing, "first_difference", lambda *_: "ids differ")
        wrong = packed(tmp_path / "wrong", tmp_path / "s", tiny, source)
    assert (wrong.counts["texts_fast"], wrong.counts["texts_slow_sample_mismatch"]) == (0, 300)
    assert wrong.digest == right.digest  # not of the manifest's business
    monkeypatch.setenv(encodings.SWITCH, "0")
    off = packed(tmp_path / "off", tmp_path / "s", tiny, source)
    assert (off.digest, off.counts["texts_slow_switched_off"]) == (right.digest, 300)
    spec = runspec(
        tmp_path / "off",
        pack=PackRun(source=source, tokenizer=tiny.tokenizer, sequence_length=64, objective="Pretraining"),
    )
    assert prepare.finalize(spec, ctx(tmp_path / "s")) == off


def test_synthesizer_tuning_has_its_loss_on_pairs_alone(tiny, tmp_path, augmented):
    result = packed(tmp_path / "out", tmp_path / "s", tiny, augmented, objective="SynthesizerTuning", length=512)
    [(tokens, targets)] = list(segments(tmp_path / "out"))
    backend = TextEncoder(Path(tiny.tokenizer.uri))._backend
    # The wire format of docs/concepts/method.md, byte by byte; BOS and EOS are the profile's.
    assert backend.decode(tokens, skip_special_tokens=False) == (
        "<s> <CON> first text </CON>\n\n<QUE> q one <ANS> a one </END>\n\n<QUE> q two <ANS> a two </END></s>"
        "<s> <CON> second text </CON>\n\n<QUE> q <ANS> a </END></s>"
    )
    learned = backend.decode([t for t, m in zip(tokens, targets, strict=True) if m], skip_special_tokens=False)
    assert learned == ("<QUE> q one <ANS> a one </END>\n\n<QUE> q two <ANS> a two </END></s><QUE> q <ANS> a </END></s>")
    assert [tokens.count(BOS), tokens.count(EOS)] == [2, 2]
    assert result.counts["loss_tokens"] == sum(targets)
    # The chain without a pair teaches a synthesizer nothing; it is counted, not lost.
    assert (result.counts["items"], result.counts["without_targets"]) == (1, 1)


@pytest.mark.parametrize("objective", ["Pretraining", "InstructionTuning"])
def test_instructions_are_question_space_answer(tiny, tmp_path, objective):
    path = tmp_path / "i.jsonl"
    path.write_text(json.dumps({"q": "What is it?", "a": "A row."}) + "\n")
    source = PreparedSource(name="i", format="instructions", uri=str(path), question_field="q", answer_field="a")
    packed(tmp_path / "out", tmp_path / "s", tiny, source, objective=objective)
    [(tokens, targets)] = list(segments(tmp_path / "out"))
    backend = TextEncoder(Path(tiny.tokenizer.uri))._backend
    assert backend.decode(tokens, skip_special_tokens=False) == "<s>What is it? A row.</s>"
    learned = backend.decode([t for t, m in zip(tokens, targets, strict=True) if m], skip_special_tokens=False)
    assert learned == (" A row.</s>" if objective == "InstructionTuning" else "What is it? A row.</s>")


def test_a_document_cannot_end_itself(tiny, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one </s><s> two")
    packed(tmp_path / "out", tmp_path / "s", tiny, PreparedSource(name="t", format="text", uri=str(path)))
    [(tokens, _)] = list(segments(tmp_path / "out"))
    assert [tokens.count(BOS), tokens.count(EOS)] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "objective", "error", "message"),
    [
        ({"format": "corpus"}, "Pretraining", ConfigError, "write format: augmented"),
        ({"format": "instructions"}, "SynthesizerTuning", ConfigError, "needs format augmented"),
        ({}, "InstructionTuning", ConfigError, "needs format instructions"),
        ({"digest": "sha256:" + "0" * 64}, "Pretraining", ConfigError, "has digest"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tiny, tmp_path, augmented, changes, objective, error, message
):
    source = augmented.model_copy(update=changes)
    with pytest.raises(error, match=message):
        packed(tmp_path / "out", tmp_path / "s", tiny, source, objective=objective)
    assert not (tmp_path / "out").exists()


def test_broken_records_are_refused(tiny, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(CorpusError, match=r"t.jsonl:2.*'text'"):
        packed(tmp_path / "out", tmp_path / "s", tiny, PreparedSource(name="t", format="jsonl", uri=str(path)))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_that_teaches_nothing_is_refused(tiny, tmp_path):
    folder = tmp_path / "augmented"
    (folder / "data").mkdir(parents=True)
    write_chains(folder / "data" / "x.parquet", [chain(0, [("text", [])], "text")])
    entry = ShardEntry(id="0", counts={"documents": 1}, sha256=sha256_of_file(folder / "data" / "x.parquet"))
    publish_manifest(
        open_store(str(folder)), Manifest(kind="augmented", code_version="t", shards=(entry,)),
        objects={"0": "data/x.parquet"},
    )  # fmt: skip
    source = PreparedSource(name="a", format="augmented", uri=str(folder))
    with pytest.raises(TrainingError, match="0 tokens"):
        packed(tmp_path / "out", tmp_path / "s", tiny, source, objective="SynthesizerTuning")


def test_a_tokenizer_is_made_once_and_named_by_its_content(tiny, tmp_path):
    source = PreparedSource(name="t", format="jsonl", uri=str(tiny.text))
    results = []
    for name in ("a", "b"):
        spec = runspec(tmp_path / name, tokenizer=TokenizerRun(source=source, vocab_size=300))
        assert prepare.finalize(spec, ctx(tmp_path / "s")).missing == 1
        prepare.run(spec, ctx(tmp_path / "s"))
        results.append(prepare.finalize(spec, ctx(tmp_path / "s")))
        assert prepare.finalize(spec, ctx(tmp_path / "s")) == results[-1]
    manifests = [load_manifest(open_store(str(tmp_path / name))) for name in ("a", "b")]
    assert manifests[0].files == manifests[1].files
    assert manifests[0].kind == "tokenizer"
    assert results[0].counts == {"vocab_size": 300, "documents": 300, "bytes": results[1].counts["bytes"]}


def test_another_tokenizer_in_between_is_never_taken_for_this_one(tiny, tmp_path):
    def made(size: int):
        spec = runspec(tmp_path / "tok", tokenizer=TokenizerRun(source=tiny.source, vocab_size=size))
        prepare.run(spec, ctx(tmp_path / "s"))
        result = prepare.finalize(spec, ctx(tmp_path / "s"))
        files = load_manifest(open_store(result.uri)).files
        assert all(sha256_of_file(tmp_path / "tok" / file.path) == file.sha256 for file in files)
        return result

    first, second, again = made(300), made(290), made(300)
    assert first == again
    assert first.digest != second.digest
