from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults import FaultyStore, Killed

import instructpt
from instructpt.api.base import StorageSpec
from instructpt.api.runspec import InitRun, PackRun, ResolvedInput, TokenizerRun, TrainSource, ValidationRun
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec, DeepSpeed, Kernels
from instructpt.corpus.manifest import load_manifest
from instructpt.errors import ConfigError, TrainingError
from instructpt.storage import open_store
from instructpt.storage.hashing import sha256_of_file
from instructpt.storage.models import fetch_model
from instructpt.telemetry.context import WorkerContext
from instructpt.training import entry, prepare
from instructpt.training.model import build_model
from instructpt.training.tokenshards import TokenShard

pytestmark = pytest.mark.deepspeed

# Fixed seed, spec, text and code: the losses of a small run. A change of packing, order, model or optimizer shows here.
GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())


def ctx(folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id="w", scratch=folder)


def trained(spec, scratch: Path):
    entry.run(spec, ctx(scratch))
    result = entry.finalize(spec, ctx(scratch))
    assert result.missing == 0
    return result


def process(spec, folder: Path, *actions: str, path: str = "/nonexistent") -> subprocess.CompletedProcess:
    """A worker of its own, with no compiler on its PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runspec.json").write_text(spec.to_json())
    script = Path(__file__).parent / "worker_process.py"
    return subprocess.run(
        [sys.executable, str(script), str(folder / "runspec.json"), str(folder / "scratch"), *actions],
        env={
            "PATH": path, "HOME": str(folder), "PYTHONPATH": str(Path(instructpt.__file__).parent.parent),
            "INSTRUCTPT_THREADS": "2", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE",
        },
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = os.environ.get("INSTRUCTPT_THREADS")
    os.environ["INSTRUCTPT_THREADS"] = "2"
    yield
    if before is None:
        del os.environ["INSTRUCTPT_THREADS"]
    else:
        os.environ["INSTRUCTPT_THREADS"] = before


@pytest.fixture(scope="module")
def undisturbed(train_spec, tmp_path_factory):
    """Result and output of the run that others are compared with; nobody writes to it."""
    root = tmp_path_factory.mktemp("undisturbed")
    return trained(train_spec(root / "out"), root / "scratch"), root / "out"


def test_the_export_is_a_model_that_others_load(undisturbed, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, output = undisturbed
    assert result.counts["tokens"] == 5000
    assert result.scores["final_loss"] < result.scores["first_loss"]
    folder = fetch_model(ResolvedInput(uri=str(output), digest=result.digest), tmp_path / "cache")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("the model reads", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3
    manifest = load_manifest(open_store(str(output)))
    assert manifest.kind == "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl"} <= {
        f.path for f in manifest.files
    }
    assert "throughput.jsonl" not in {f.path for f in manifest.files}
    assert set(manifest.inputs) == {"tokenizer", "source:text"}
    assert manifest.extra["receipt"][0]["tokens"] == 5000
    assert (output / "model.safetensors").stat().st_mode & 0o044


def test_losses_are_the_golden_ones(undisturbed):
    assert losses(undisturbed[1]) == pytest.approx(GOLDEN, abs=1e-4)


def test_the_same_run_gives_the_same_bytes_and_a_second_call_does_nothing(train_spec, undisturbed, tmp_path):
    result, output = undisturbed
    again = trained(train_spec(tmp_path / "again"), tmp_path / "s-again")
    for file in load_manifest(open_store(str(output))).files:
        assert (output / file.path).read_bytes() == (tmp_path / "again" / file.path).read_bytes()
    before = (tmp_path / "again" / "throughput.jsonl").read_bytes()
    assert trained(train_spec(tmp_path / "again"), tmp_path / "s-again") == again
    assert (tmp_path / "again" / "throughput.jsonl").read_bytes() == before
    assert again.scores == result.scores


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch_rows": 8}, id="one-micro-batch"),
        pytest.param({"micro_batch_rows": 3}, id="uneven-micro-batches"),
        pytest.param({"deepspeed": DeepSpeed(zero_stage=0)}, id="stage-0"),
        pytest.param({"deepspeed": DeepSpeed(zero_stage=3)}, id="stage-3"),
    ],
)
def test_batching_and_sharding_do_not_change_the_losses(train_spec, tmp_path, changes):
    output = tmp_path / "other"
    trained(train_spec(output, **changes), tmp_path / "s")
    assert losses(output) == pytest.approx(GOLDEN, abs=1e-4)


def test_a_store_that_is_no_folder_gives_the_same_bytes(tiny, train_spec, undisturbed, tmp_path):
    """Everything but the text lies where it must be downloaded, as on S3."""
    root = f"memory://{tmp_path.name.replace('_', '-')}"
    source = tiny.source
    made = {}
    for name, section in (
        ("tokenizer", lambda: {"tokenizer": TokenizerRun(source=source, vocab_size=300)}),
        (
            "tokens",
            lambda: {
                "pack": PackRun(source=source, tokenizer=made["tokenizer"], sequence_length=64, objective="Pretraining")
            },
        ),
    ):
        spec = train_spec(tmp_path).model_copy(
            update={"train": None, "verb": "prepare", "output": StorageSpec(uri=f"{root}/{name}"), **section()}
        )
        prepare.run(spec, ctx(tmp_path / name))
        result = prepare.finalize(spec, ctx(tmp_path / name))
        made[name] = ResolvedInput(uri=result.uri, digest=result.digest)
    rows = TrainSource(name="text", weight=1.0, max_repeats=4, **dict(made["tokens"]))
    spec = train_spec(f"{root}/model", tokenizer=made["tokenizer"], sources=(rows,))
    result = trained(spec, tmp_path / "s")
    folder = fetch_model(ResolvedInput(uri=result.uri, digest=result.digest), tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == (undisturbed[1] / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_without_a_compiler(train_spec, undisturbed, tmp_path):
    spec = train_spec(tmp_path / "killed")
    dead = process(spec, tmp_path / "p", "kill=6")
    assert dead.returncode == -9, dead.stderr[-2000:]
    assert not (tmp_path / "killed" / "manifest.json").exists()
    done = process(spec, tmp_path / "p")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming after step 4" in done.stderr + done.stdout
    for name in ("model.safetensors", "metrics.jsonl", "config.json", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (undisturbed[1] / name).read_bytes(), name


@pytest.mark.parametrize(("kill_at", "moment", "kept"), [(5, "after", 4), (8, "before", 4), (8, "after", 8)])
def test_killed_at_a_write_of_a_checkpoint_it_comes_to_the_same_bytes(
    train_spec, undisturbed, tmp_path, monkeypatch, kill_at, moment, kept
):
    """The second checkpoint is writes 7 to 12: a part, two records, the data position, manifest, LATEST."""
    from instructpt.training import loop

    spec, stores = train_spec(tmp_path / "killed"), []

    def deadly(uri, **access):
        stores.append(FaultyStore(open_store(uri, **access), kill_at=4 + kill_at, moment=moment))
        return stores[-1]

    monkeypatch.setattr(loop, "open_store", deadly)
    with pytest.raises(Killed):
        entry.run(spec, ctx(tmp_path / "s"))
    monkeypatch.undo()
    assert json.loads((tmp_path / "killed" / "checkpoints" / "LATEST").read_text())["step"] == kept
    trained(spec, tmp_path / "s")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (undisturbed[1] / name).read_bytes(), name


def test_a_corrupt_checkpoint_is_refused_with_its_reason_for_all_to_see(train_spec, undisturbed, tmp_path):
    spec = train_spec(tmp_path / "out")
    left = ctx(tmp_path / "s")
    update = left.progress.update

    def stop_at_9(**figures):
        update(**figures)
        if figures.get("done") == 8:
            left.stop.set()

    left.progress.update = stop_at_9
    with pytest.raises(entry.Preempted, match="stopped after step 9 of 10, a checkpoint was written"):
        entry.run(spec, left)
    part = next((tmp_path / "out" / "checkpoints" / "step-9").glob("*/*.safetensors"))
    part.write_bytes(part.read_bytes()[:-7])
    again = ctx(tmp_path / "s")
    entry.run(spec, again)
    figures = again.progress.snapshot()
    assert figures["gauges"]["resumed_step"] == 8
    assert "checkpoint step-9 is refused: " in figures["notes"]["resume"]
    assert "is truncated" in figures["notes"]["resume"]
    assert entry.finalize(spec, again).counts["checkpoint"] == 8
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (undisturbed[1] / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_asked_to_leave_it_checkpoints_and_goes_on_from_there(train_spec, undisturbed, tmp_path):
    spec = train_spec(tmp_path / "left")
    left = process(spec, tmp_path / "p", "term=3")
    assert left.returncode == 75, left.stderr[-2000:]
    latest = json.loads((tmp_path / "left" / "checkpoints" / "LATEST").read_text())
    assert 3 <= latest["step"] <= 4
    parts = list(
        (tmp_path / "left" / "checkpoints" / f"step-{latest['step']}").glob("*/rank-00000-of-00001.safetensors")
    )
    assert [part.stat().st_size > 0 for part in parts] == [True]
    trained(spec, tmp_path / "p" / "scratch")
    assert (tmp_path / "left" / "model.safetensors").read_bytes() == (undisturbed[1] / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_and_one_goes_on_where_two_stopped(train_spec, tmp_path):
    spec = train_spec(tmp_path / "two", processes_per_node=2)
    asked = ctx(tmp_path / "s-asked")
    asked.stop.set()
    with pytest.raises(entry.Preempted, match="after step 1 of 10"):
        entry.run(spec, asked)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    trained(spec, tmp_path / "s-two")
    assert losses(tmp_path / "two") == pytest.approx(GOLDEN, abs=1e-4)
    # The state is kept by name, so that another number of ranks takes it up.
    trained(train_spec(tmp_path / "one"), tmp_path / "s-one")
    assert losses(tmp_path / "one") == pytest.approx(GOLDEN, abs=1e-4)


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_worker(train_spec, tmp_path):
    spec = train_spec(tmp_path / "two", processes_per_node=2, tokens=50_000, checkpoint=CheckpointSpec(every_steps=2))
    assert process(spec, tmp_path / "p", "kill=any").returncode == -9
    deadline = time.monotonic() + 30
    while alive(str(tmp_path / "p")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(str(tmp_path / "p"))
    assert not (tmp_path / "two" / "model.safetensors").exists()
    assert (tmp_path / "two" / "checkpoints" / "LATEST").exists()


def alive(word: str) -> list[str]:
    """Command lines of processes that name ``word``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode()
            found += [line] if word in line else []
    return found


@pytest.mark.slow
def test_a_rank_that_fails_leaves_its_cause(train_spec, tmp_path):
    spec = train_spec(tmp_path / "bad", processes_per_node=2, init=InitRun(config={"model_type": "no-such"}))
    with pytest.raises(ConfigError, match="cannot make a model") as error:
        entry.run(spec, ctx(tmp_path / "s"))
    assert error.value.field == "init.config"


def test_what_nobody_foresaw_in_a_rank_may_be_tried_again(tmp_path):
    """Such as a collective that fails because the peer was killed; here, a folder without a RunSpec."""
    from instructpt.training.launch import _cause

    root = str(Path(instructpt.__file__).parent.parent)
    argv = [sys.executable, "-m", "instructpt.training.rank", str(tmp_path)]
    done = subprocess.run(argv, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    cause = _cause(tmp_path, 1)
    assert isinstance(cause, TrainingError)
    assert cause.retryable
    assert "FileNotFoundError" in cause.message


def test_a_loss_that_is_no_number_names_step_rows_and_documents(tiny, train_spec, tmp_path):
    """The input embedding of a rare token is no number: the rows that hold it, and no other, are at fault."""
    import torch
    from transformers import AutoTokenizer

    config = {**train_spec(tmp_path).train.init.config, "tie_word_embeddings": False}
    size = len(AutoTokenizer.from_pretrained(tiny.tokenizer.uri))
    model = build_model(config, seed=1, vocab_size=size, special={}, length=64)
    shards = [TokenShard(path) for path in sorted(Path(tiny.tokens.uri).rglob("*.tokens"))]
    rows = [shard.row(n).tokens for shard in shards for n in range(shard.num_rows)]
    holders = np.array([sum(token in row for row in rows) for token in range(size)])
    rare = int(np.argmin(np.where(holders > 0, holders, len(rows))))
    with torch.no_grad():
        model.get_input_embeddings().weight[rare] = torch.nan
    model.save_pretrained(tmp_path / "poisoned")
    spec = train_spec(tmp_path / "nan", init=InitRun(model=ResolvedInput(uri=str(tmp_path / "poisoned"))))
    said = r"the loss of step \d+ is nan, because of these rows: text: micro-shard file-0000\d, row \d+, documents \d+"
    with pytest.raises(TrainingError, match=said) as error:
        entry.run(spec, ctx(tmp_path / "s"))
    assert 1 <= str(error.value).count("micro-shard") < 8
    assert not (tmp_path / "nan" / "model.safetensors").exists()


def test_a_model_is_continued(train_spec, undisturbed, tmp_path):
    result, output = undisturbed
    init = InitRun(model=ResolvedInput(uri=str(output), digest=result.digest))
    spec = train_spec(tmp_path / "on", init=init, tokenizer=ResolvedInput(uri=str(output)), seed=2)
    continued = trained(spec, tmp_path / "s")
    assert continued.scores["first_loss"] < result.scores["first_loss"] - 0.2
    assert load_manifest(open_store(str(tmp_path / "on"))).inputs["init"] == result.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 10**7}, "may be read 4 times"),
        ({"sequence_length": 128}, "packed for 64 tokens"),
        ({"init": InitRun(config={"model_type": "no-such"})}, "cannot make a model"),
        ({"init": InitRun(config={"model_type": "llama", "max_position_embeddings": 32})}, "32 positions"),
        ({"init": InitRun(model=ResolvedInput(uri="/no/such/model"))}, "does not exist"),
        ({"tokenizer": ResolvedInput(uri="/no/such/tokenizer")}, "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(train_spec, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        entry.run(train_spec(tmp_path / "bad", **changes), ctx(tmp_path / "s"))
    assert not (tmp_path / "bad").exists()
    assert entry.finalize(train_spec(tmp_path / "bad", **changes), ctx(tmp_path / "s")).missing == 1


def test_a_checkpoint_of_another_spec_is_not_resumed(train_spec, undisturbed, tmp_path, caplog):
    output = tmp_path / "copy"
    shutil.copytree(undisturbed[1], output)
    spec = train_spec(output, seed=5, checkpoint=CheckpointSpec(every_steps=100))
    trained(spec, tmp_path / "s")
    assert "another spec" in caplog.text
    assert losses(output)[0] != GOLDEN[0]


def verified(output: Path) -> dict[str, bytes]:
    """The files that the manifest names, with the bytes that it names."""
    manifest = load_manifest(open_store(str(output)))
    assert all(sha256_of_file(output / file.path) == file.sha256 for file in manifest.files)
    return {file.path: (output / file.path).read_bytes() for file in manifest.files}


def test_another_training_in_between_is_never_taken_for_this_one(train_spec, undisturbed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(undisturbed[1], output)
    first, spec = undisturbed[0], train_spec(output)
    assert trained(spec, tmp_path / "s") == first.model_copy(update={"uri": str(output)})
    bytes_of_first = verified(output)
    (output / "notes.txt").write_text("mine")
    (output / "model-00009-of-00009.safetensors").write_text("left by a killed upload")
    other = train_spec(output, seed=2)
    assert trained(other, tmp_path / "s").digest != first.digest
    assert verified(output)["model.safetensors"] != bytes_of_first["model.safetensors"]
    assert not list(output.glob("model-*"))
    assert entry.finalize(spec, ctx(tmp_path / "s")).missing == 1
    again = trained(spec, tmp_path / "s")
    assert again.digest == first.digest
    assert verified(output) == bytes_of_first
    assert (output / "notes.txt").read_text() == "mine"


def test_another_training_killed_while_it_uploads(train_spec, undisturbed, tmp_path, monkeypatch):
    from instructpt.training import loop

    output = tmp_path / "out"
    shutil.copytree(undisturbed[1], output)
    spec, bytes_of_first = train_spec(output), verified(output)

    def deadly(uri, **access):
        store = open_store(uri, **access)
        # Of the export: the manifest and the record of the first training are deleted, then files come one by one.
        return FaultyStore(store, kill_at=8)

    monkeypatch.setattr(loop, "open_store", deadly)
    with pytest.raises(Killed):
        entry.run(train_spec(output, seed=2, checkpoint=CheckpointSpec(every_steps=100)), ctx(tmp_path / "s"))
    monkeypatch.undo()
    assert (output / "model.safetensors").read_bytes() != bytes_of_first["model.safetensors"]
    assert not (output / "manifest.json").exists()
    assert entry.finalize(spec, ctx(tmp_path / "s")).missing == 1
    assert trained(spec, tmp_path / "s").digest == undisturbed[0].digest
    assert verified(output) == bytes_of_first


def test_an_export_whose_files_changed_before_its_manifest_is_made_again(train_spec, undisturbed, tmp_path, caplog):
    output = tmp_path / "out"
    shutil.copytree(undisturbed[1], output)
    (output / "manifest.json").unlink()
    before = (output / "throughput.jsonl").read_bytes()
    spec = train_spec(output)
    entry.run(spec, ctx(tmp_path / "s"))
    assert (output / "throughput.jsonl").read_bytes() == before, "whole, so nothing was trained"
    (output / "model.safetensors").write_bytes(b"other")
    assert trained(spec, tmp_path / "s").digest == undisturbed[0].digest
    assert "model.safetensors below" in caplog.text
    verified(output)


def test_validation_changes_nothing_and_is_recorded(tiny, train_spec, undisturbed, tmp_path):
    held = TrainSource(name="validation", weight=1.0, max_repeats=1, uri=tiny.tokens.uri, digest=tiny.tokens.digest)
    section = ValidationRun(source=held, every_steps=1, tokens=400)
    output = tmp_path / "out"
    result = trained(train_spec(output, validation=section, micro_batch_rows=3), tmp_path / "s")
    found = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert losses(output) == pytest.approx(GOLDEN, abs=1e-4)
    assert [line["step"] for line in found] == list(range(1, 11))
    assert found[0]["loss"] > found[-1]["loss"] == result.scores["validation_loss"]
    assert 300 < found[0]["loss_tokens"] <= 400
    manifest = load_manifest(open_store(str(output)))
    assert "validation.jsonl" in {file.path for file in manifest.files}
    assert manifest.inputs["source:validation"] == tiny.tokens.digest
    asked = ctx(tmp_path / "s-left")
    asked.stop.set()
    again = train_spec(tmp_path / "left", validation=section, micro_batch_rows=3)
    with pytest.raises(entry.Preempted):
        entry.run(again, asked)
    trained(again, tmp_path / "s-left")
    for name in ("validation.jsonl", "metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "left" / name).read_bytes() == (output / name).read_bytes(), name


def test_epochs_pass_over_every_token_so_often(tiny, train_spec, tmp_path):
    tokens = load_manifest(open_store(tiny.tokens.uri)).counts["tokens"]
    output = tmp_path / "out"
    result = trained(
        train_spec(output, tokens=None, epochs=2, global_batch_rows=64, micro_batch_rows=64), tmp_path / "s"
    )
    assert result.counts["tokens"] == 2 * tokens
    receipt = load_manifest(open_store(str(output))).extra["receipt"][0]
    assert (receipt["passes"], receipt["tokens"]) == (2.0, 2 * tokens)


def test_kernels_give_the_same_losses_and_what_is_impossible_is_refused(train_spec, tmp_path):
    for name in ("blocks", "mask"):
        output = tmp_path / name
        trained(train_spec(output, kernels=Kernels(attention=name)), tmp_path / f"s-{name}")
        assert losses(output) == pytest.approx(GOLDEN, abs=1e-4)
    for kernels, said in ((Kernels(attention="varlen"), "compute capability"), (Kernels(liger=True), "needs a GPU")):
        with pytest.raises(ConfigError, match=said):
            entry.run(train_spec(tmp_path / "no", kernels=kernels), ctx(tmp_path / "s-no"))
