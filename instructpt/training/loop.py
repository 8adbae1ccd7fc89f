"""The training loop of one rank: rows by arithmetic, loss over the step's targets, checkpoints, export at the end."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instructpt.api.runspec import RunSpec, TrainRun
from instructpt.api.v1alpha1.trainingjob import Kernels
from instructpt.errors import ConfigError, EnvironmentNotReadyError, TrainingError
from instructpt.storage import Store, open_store
from instructpt.telemetry.progress import Progress
from instructpt.training import acceleration, attention, metrics
from instructpt.training.ahead import Ahead
from instructpt.training.background import Background
from instructpt.training.batches import Batch, micro_batches
from instructpt.training.capture import Capture
from instructpt.training.checkpoint import RESUME_SECONDS, drop_broken, training_key
from instructpt.training.dataset import TokenSource
from instructpt.training.encoder import TextEncoder
from instructpt.training.engine import Engine, EngineSettings, Ranks, on_all, start
from instructpt.training.errors import Preempted
from instructpt.training.export import CARD, model_card, write_model
from instructpt.training.files import file_entries
from instructpt.training.mixture import Mixture, Slot, SourceRows, slots_of_rank
from instructpt.training.model import PackedCausalLM, build_model, load_model
from instructpt.training.outputs import clear, result_key
from instructpt.training.parts import PARAM, Parts
from instructpt.training.patience import Patience
from instructpt.training.saver import NOTE, Group, Saver
from instructpt.training.schedule import learning_rate
from instructpt.training.tokenshards import Row
from instructpt.training.validate import held_out
from instructpt.training.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a rank is given beside spec and inputs.

    Attributes:
        stop: Whether this rank was asked to leave.
        progress: Live figures; rank 0 fills them.
    """

    ranks: Ranks
    stop: Callable[[], bool]
    progress: Progress


def train(spec: RunSpec, workspace: Workspace, around: Surroundings) -> None:
    """Train to the end, or to a checkpoint when asked to leave.

    Raises:
        ConfigError: Model, tokenizer, mixture or device do not fit.
        Preempted: A checkpoint was written after a request to leave.
        TrainingError: The loss is not a number.
    """
    assert spec.train is not None
    Trainer(spec, spec.train, workspace, around).run()


class Trainer:
    """One rank of one training.

    Args:
        spec: The RunSpec.
        section: Its section ``train``.
        workspace: Inputs on this machine.
        around: Rank, request to leave, live figures.
    """

    def __init__(self, spec: RunSpec, section: TrainRun, workspace: Workspace, around: Surroundings) -> None:
        self._spec = spec
        self._section = section
        self._workspace = workspace
        self._around = around
        self._ranks = around.ranks
        self._store = open_store(spec.output.uri, access=spec.output)
        self._device = choose_device(section, self._ranks)
        set_threads(section)
        self._encoder = TextEncoder(Path(workspace.tokenizer))
        self._sources = [TokenSource(s, workspace.sources[s.name]) for s in section.sources]
        rows, tokens = budget(section, [source.rows() for source in self._sources])
        self._mixture = Mixture(rows, tokens=tokens, batch_rows=section.global_batch_rows, seed=section.seed)
        self._held_out = None
        if section.validation is not None:
            source = section.validation.source
            self._held_out = held_out(TokenSource(source, workspace.sources[source.name]), section.validation.tokens)
        self._rank_rows = section.global_batch_rows // self._ranks.world_size
        if section.global_batch_rows % self._ranks.world_size:
            raise ConfigError(
                f"must be a multiple of the {self._ranks.world_size} ranks",
                field="globalBatchRows",
                value=section.global_batch_rows,
                fix=f"use {self._ranks.world_size * max(1, self._rank_rows)}",
            )
        self._micro_rows = min(section.micro_batch_rows, self._rank_rows)
        self._micro_batches = -(-self._rank_rows // self._micro_rows)
        self._kernels = section.kernels or Kernels()
        self._ahead = Ahead(self._made, self._mixture.steps)

    def run(self) -> None:
        """From the last checkpoint, or the start, to the export."""
        start(self._device, self._ranks)
        self._agree()
        if self._device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        acceleration.check(self._kernels, self._device, self._section.deepspeed.zero_stage)
        module = self._module()
        resume = self._workspace.resume
        first, parts = (resume.step, Parts(resume.parts)) if resume else (0, None)
        if parts is not None:
            with torch.no_grad():  # one at a time: every rank of a node has the whole model for a while
                for name, p in module.named_parameters():
                    if p.requires_grad:
                        p.copy_(parts.whole(PARAM, name))
        engine = Engine(module, self._settings(), self._ranks)
        log.info("DeepSpeed: %s", engine.describe())
        recorder = self._recorder(module)
        capture = Capture(engine, recorder, self._mixture, self._ranks, seed=self._section.seed)
        if resume and parts is not None:
            engine.load(parts, steps=first)
            capture.restore(Path(resume.folder), parts, first)
        saver = self._saver(engine, capture, first)
        self._around.progress.update(
            done=first, total=self._mixture.steps, unit="steps",
            gauges={"resumed_step": float(first), "checkpoint_step": float(first)} if first else {},
            notes={"resume": "; ".join(self._workspace.refused) or None},
        )  # fmt: skip
        try:
            self._steps(engine, recorder, saver, first)
        finally:
            self._ahead.close()
        saver.drain()
        self._finish(engine, module, recorder)

    def _saver(self, engine: Engine, capture: Capture, first: int) -> Saver:
        def total(values: Sequence[float]) -> Sequence[float]:
            found: list[float] = engine.all_sum(
                torch.tensor(values, dtype=torch.float64, device=engine.device)
            ).tolist()
            return found

        if self._ranks.rank == 0:  # all nodes have looked, and agree
            drop_broken(self._store, self._workspace.broken, first, Patience(seconds=RESUME_SECONDS))
        group = Group(rank=self._ranks.rank, size=self._ranks.world_size, gather=engine.gather, total=total)
        return Saver(
            self._store,
            training_key(self._spec),
            Path(self._workspace.scratch) / "checkpoints",
            group,
            capture,
            life=engine.gather(secrets.token_hex(4))[0],
            every=self._section.checkpoint.every_steps,
            keep=self._section.checkpoint.keep,
            progress=self._around.progress,
            step=first,
        )

    def _agree(self) -> None:
        """Each node looked for the last checkpoint by itself: all must go on from the same."""
        resume = self._workspace.resume
        steps = on_all(resume.step if resume else 0, self._device, self._ranks)
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the nodes found different checkpoints to go on from: after steps {steps}, by rank",
                fix="it is tried again; look at the log of the node with the smaller one if it stays",
                retryable=True,
            )

    def _steps(self, engine: Engine, recorder: metrics.Recorder, saver: Saver, first: int) -> None:
        total = self._mixture.steps
        for step in range(first, total):
            recorder.begin()
            stop = self._step(engine, recorder, saver, step)
            done = step + 1
            if done < total and stop:
                raise self._left(saver, done)

    def _left(self, saver: Saver, done: int) -> Preempted:
        """Asked to leave: keep what was done."""
        said = f"stopped after step {done} of {self._mixture.steps}"
        if saver.save_now(done):
            return Preempted(f"{said}, a checkpoint was written", retryable=True)
        why = self._around.progress.snapshot()["notes"].get(NOTE, "its checkpoint could not be stored")
        return Preempted(f"{said}, {done - saver.step} steps are lost: {why}", retryable=True)

    def _step(self, engine: Engine, recorder: metrics.Recorder, saver: Saver, step: int) -> bool:
        """One optimizer step; whether any rank was asked to leave."""
        section, ranks = self._section, self._ranks
        torch.manual_seed((section.seed << 32) ^ (step * ranks.world_size + ranks.rank))
        began = time.monotonic()
        slots, targets, batches = self._ahead.get(step)
        waited = time.monotonic() - began
        sums = torch.zeros(5, dtype=torch.float64, device=engine.device)
        for batch in batches:
            sums[0] += engine.accumulate(to_tensors(batch, engine.device), targets)
        sums[1:] = torch.tensor([float(self._around.stop()), *saver.votes()])
        loss_sum, stops, *votes = engine.all_sum(sums).tolist()
        loss = loss_sum / max(1, targets)
        if not math.isfinite(loss):
            raise self._not_a_number(engine, step, f"the loss of step {step + 1} is {loss}")
        rate = learning_rate(step, self._mixture.steps, section.optimizer.learning_rate, section.schedule)
        saver.before_update()
        norm = engine.step(rate)
        if not math.isfinite(norm):  # before anything is recorded or saved
            raise self._not_a_number(engine, None, f"the gradients of step {step + 1} are {norm}", slots)
        if ranks.rank == 0:
            result = metrics.StepResult(
                step=step + 1,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=sum(slot.tokens for slot in slots),
                loss_tokens=targets,
            )
            recorder.end(result, memory_bytes=self._memory(), data_seconds=waited)
        done, total = step + 1, self._mixture.steps
        if section.validation and (done == total or done % section.validation.every_steps == 0):
            self._validate(engine, recorder, done)  # before a checkpoint, which keeps what it found
        saver.after_step(done, votes, last=done == total)
        return bool(stops > 0)

    def _made(self, step: int) -> tuple[list[Slot], int, list[Batch]]:
        """The rows of a step, the targets of all of them, and the micro batches of this rank; in a thread."""
        slots = self._mixture.step(step)
        targets = sum(self._targets(slot) for slot in slots)
        rows = [self._row(slot) for slot in slots_of_rank(slots, self._ranks.rank, self._ranks.world_size)]
        length, pad = self._section.sequence_length, self._encoder.pad
        return slots, targets, micro_batches(rows, self._micro_rows, self._micro_batches, length, pad)

    def _validate(self, engine: Engine, recorder: metrics.Recorder, done: int) -> None:
        """The loss on the held-out rows; all ranks together."""
        held = self._held_out
        assert held is not None
        began = time.monotonic()
        total = torch.zeros(1, dtype=torch.float64, device=engine.device)
        ranks, length = self._ranks, self._section.sequence_length
        for batch in held.batches(ranks.rank, ranks.world_size, self._micro_rows, length, self._encoder.pad):
            total += engine.evaluate(to_tensors(batch, engine.device))
        loss = float(engine.all_sum(total).item()) / max(1, held.loss_tokens)
        if ranks.rank == 0:
            recorder.validated(done, loss, held.loss_tokens, time.monotonic() - began)

    def _not_a_number(
        self, engine: Engine, step: int | None, what: str, slots: list[Slot] | None = None
    ) -> TrainingError:
        """The error that names the rows: of a loss those alone that have one that is no number."""
        bad = self._bad_slots(engine, step) if step is not None else slots or []
        rows = [self._sources[slot.source].place(slot.row) for slot in bad]
        more = f" and {len(rows) - 8} more rows" if len(rows) > 8 else ""
        where = "; ".join(rows[:8])
        cause = "whose rows are"
        if step is not None:
            whole = len(bad) == len(self._mixture.step(step))
            cause = (
                "and that of each of its rows, so that the weights are at fault" if whole else "because of these rows"
            )
        return TrainingError(
            f"{what}, {cause}: {where}{more}",
            fix="lower optimizer.learningRate, or look at these documents; the last checkpoint is whole",
        )

    def _bad_slots(self, engine: Engine, step: int) -> list[Slot]:
        """Rows of a step whose own loss is no number; all of them where each alone has one."""
        slots, ranks, section = self._mixture.step(step), self._ranks, self._section
        mine: list[int] = []
        numbers = range(len(slots))[ranks.rank :: ranks.world_size]
        for turn in range(self._rank_rows):  # as often on every rank
            rows = [self._row(slots[n]) for n in numbers[turn : turn + 1]]
            batch = micro_batches(rows, 1, 1, section.sequence_length, self._encoder.pad)[0]
            if not torch.isfinite(engine.evaluate(to_tensors(batch, engine.device))).all():
                mine += numbers[turn : turn + 1]
        bad = sorted(n for part in engine.gather(mine) for n in part)
        return [slots[n] for n in bad] or slots

    def _row(self, slot: Slot) -> Row:
        return self._sources[slot.source].row(slot.row).head(slot.tokens)

    def _targets(self, slot: Slot) -> int:
        source = self._sources[slot.source]
        if slot.tokens == self._mixture.sources[slot.source].tokens[slot.row]:
            return int(source.row_loss[slot.row])
        return int(self._row(slot).targets.sum())

    # ---------------------------------------------------------------- set-up

    def _module(self) -> PackedCausalLM:
        model, kernels = self._model(), self._kernels
        chosen = attention.choose(
            kernels.attention,
            device=self._device,
            bf16=self._precision() == "bf16",
            supported=attention.is_supported(model),
        )
        acceleration.accelerate(model, kernels)
        log.info("attention: %s", chosen)
        return PackedCausalLM(model, chosen)

    def _model(self) -> torch.nn.Module:
        section, encoder = self._section, self._encoder
        if self._workspace.model is not None:
            return load_model(
                Path(self._workspace.model), vocab_size=encoder.vocab_size, length=section.sequence_length
            )
        if section.init.config is None:
            raise ConfigError("needs a model or a config", field="init", fix="set init.preset or init.from")
        special = {"bos_token_id": encoder.bos, "eos_token_id": encoder.eos, "pad_token_id": encoder.pad}
        return build_model(
            section.init.config,
            seed=section.seed,
            vocab_size=encoder.vocab_size,
            special=special,
            length=section.sequence_length,
        )

    def _precision(self) -> Literal["bf16", "fp32"]:
        if self._section.precision == "auto":
            return "fp32" if self._device.type == "cpu" else "bf16"
        return self._section.precision

    def _settings(self) -> EngineSettings:
        section = self._section
        stage = section.deepspeed.zero_stage
        if stage == 0 and self._precision() == "bf16":
            log.info("zeroStage 0 with bf16 keeps no exact weights: training with stage 1, which does")
            stage = 1
        return EngineSettings(
            zero_stage=stage,
            precision=self._precision(),
            gradient_clip=section.gradient_clip,
            optimizer=section.optimizer,
            micro_batches=self._micro_batches,
            micro_batch_rows=self._micro_rows,
        )

    def _recorder(self, module: PackedCausalLM) -> metrics.Recorder:
        config: Any = module.model.config
        layers, hidden = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
        size = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        peak = None
        if self._device.type == "cuda":
            peak = metrics.peak_flops(torch.cuda.get_device_name(self._device), self._ranks.world_size)
        elif self._ranks.rank == 0:
            peak = metrics.measured_peak() * self._ranks.world_size
            log.info(
                "matrix products of this rank: %.3f TFLOPS, the peak that MFU is of", metrics.measured_peak() / 1e12
            )
        log.info(
            "%s parameters on %s, %d steps of %d rows, %d ranks x %d micro batches of %d rows, %s",
            f"{size:,}", self._device, self._mixture.steps, self._section.global_batch_rows, self._ranks.world_size,
            self._micro_batches, self._micro_rows, self._precision(),
        )  # fmt: skip
        return metrics.Recorder(
            steps=self._mixture.steps,
            flops_per_token=metrics.flops_per_token(size, layers, hidden, self._section.sequence_length),
            peak_flops=peak,
            progress=self._around.progress,
        )

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return metrics.resident_bytes()

    # ---------------------------------------------------------------- export

    def _finish(self, engine: Engine, module: PackedCausalLM, recorder: metrics.Recorder) -> None:
        weights = engine.weights(torch.bfloat16 if self._precision() == "bf16" else torch.float32)
        export = Background()
        if self._ranks.rank == 0:
            export.start(lambda: self._export(module, weights, recorder), name="export")
        engine.wait_for_first(export.wait)

    def _export(self, module: PackedCausalLM, weights: Mapping[str, Tensor], recorder: metrics.Recorder) -> None:
        folder = Path(self._workspace.scratch) / "export"
        shutil.rmtree(folder, ignore_errors=True)
        named = {name.removeprefix("model."): t for name, t in weights.items()}
        write_model(module.model, named, Path(self._workspace.tokenizer), folder)
        self._publish(folder, recorder, self._record(recorder))

    def _record(self, recorder: metrics.Recorder) -> dict[str, Any]:
        receipts = self._mixture.receipt()
        lines = [json.loads(line) for line in recorder.results]
        return {
            "counts": {
                "steps": self._mixture.steps,
                "rows": self._mixture.rows,
                "tokens": sum(line["tokens"] for line in lines),
                "loss_tokens": sum(line["loss_tokens"] for line in lines),
                "unique_documents": sum(r.unique_documents for r in receipts),
            },
            "scores": {**metrics.summary(recorder.losses()), **recorder.validation_scores()},
            "receipt": [receipt.to_dict() for receipt in receipts],
            "inputs": dict(self._workspace.inputs),
        }

    def _publish(self, folder: Path, recorder: metrics.Recorder, record: dict[str, Any]) -> None:
        """Upload the export and, last, what finalize reads."""
        assert record["counts"]["tokens"] == self._mixture.tokens, "the budget was not met exactly"
        recorder.write(folder)
        card = model_card(
            self._section, self._mixture.receipt(), record["inputs"], record["scores"], record["counts"]["steps"]
        )
        (folder / CARD).write_text(card, encoding="utf-8")
        patience = Patience(lambda text: self._around.progress.update(notes={"export": text}))
        what = "the export cannot be stored"
        patience(what, lambda: clear(self._store, keep={path.name for path in folder.iterdir()}))
        patience(what, lambda: upload(self._store, folder))
        # Throughput is a matter of machine and hour: it lies beside the model and is in no digest.
        files = [f for f in file_entries(folder) if f.path != metrics.THROUGHPUT]
        record["files"] = [[f.path, f.bytes, f.sha256] for f in files]
        body = json.dumps(record, sort_keys=True).encode()
        patience(what, lambda: self._store.put(result_key(self._spec.work_key()), body))


def upload(store: Store, folder: Path) -> None:
    """Put all files of a folder at the store's root."""
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        store.put_file(path.name, path)


def to_tensors(batch: Batch, device: torch.device) -> Mapping[str, Tensor]:
    """Arguments of :meth:`PackedCausalLM.forward`."""
    names = ("input_ids", "positions", "segments", "predict_from", "labels")
    on_device = {name: torch.from_numpy(getattr(batch, name)).to(device, non_blocking=True) for name in names}
    return {**on_device, "bounds": torch.from_numpy(batch.bounds)}


def budget(section: TrainRun, rows: Sequence[SourceRows]) -> tuple[list[SourceRows], int]:
    """The sources with what they are to give, and the tokens of the run.

    An epoch is one pass over every source, or as many as its ``repeats``.

    Raises:
        ConfigError: Neither tokens nor epochs are set.
    """
    if section.tokens is not None:
        return list(rows), section.tokens
    if section.epochs is None:
        raise ConfigError("needs tokens or epochs", field="tokens", fix="set one of them")
    passed = [replace(source, repeats=section.epochs * (source.repeats or 1)) for source in rows]
    return passed, sum(source.share().fixed or 0 for source in passed)


def choose_device(section: TrainRun, ranks: Ranks) -> torch.device:
    """The GPU of this rank if every rank of the node can have one, else the CPU: ranks on both would not be one group.

    ``INSTRUCTPT_DEVICE=cpu`` keeps to the CPU.

    Raises:
        EnvironmentNotReadyError: The spec asks for more GPUs than torch sees.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if section.gpus_per_node > there:
        raise EnvironmentNotReadyError(
            f"the spec asks for {section.gpus_per_node} GPUs a node, torch sees {there}",
            field="gpusPerNode",
            value=section.gpus_per_node,
            fix="lower it (0 trains on the CPU), or install the driver and a CUDA build of torch",
        )
    local = section.gpus_per_node or section.processes_per_node
    if 0 < there < local:
        log.info("%d GPUs are too few for the %d ranks of this node: training on the CPU", there, local)
    if there >= local and os.environ.get("INSTRUCTPT_DEVICE") != "cpu":
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cpu")


def set_threads(section: TrainRun) -> None:
    """``INSTRUCTPT_THREADS``, or all cores, divided among the ranks of this node."""
    cores = int(os.environ.get("INSTRUCTPT_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(max(1, cores // max(1, section.gpus_per_node or section.processes_per_node)))
