"""What a step reports: one aligned log line, one line of ``metrics.jsonl``, one of ``throughput.jsonl``.

A validation reports one line of ``validation.jsonl``.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructpt.telemetry.progress import Progress

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
THROUGHPUT = "throughput.jsonl"
VALIDATION = "validation.jsonl"

# Dense bf16 peak in FLOP/s, as the makers' data sheets state it.
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One finished step; a function of inputs and spec alone.

    Attributes:
        step: From 1.
        loss: Mean over the step's targets, in nats.
        learning_rate: Of the step.
        grad_norm: Before clipping.
        tokens: Non-padding tokens of the step.
        loss_tokens: Its targets.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    loss_tokens: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


@dataclass(slots=True)
class Recorder:
    """Collects the steps of one run; on rank 0.

    Args:
        steps: Steps of the run.
        flops_per_token: Of forward and backward.
        peak_flops: Of all devices together; None where it is not known: then there is no MFU.
        progress: Live figures.
    """

    steps: int
    flops_per_token: float
    peak_flops: float | None
    progress: Progress
    results: list[str] = field(default_factory=list)
    throughput: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def restore(self, folder: Path) -> None:
        """Take up what a checkpoint kept."""
        self.results = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        self.throughput = (folder / THROUGHPUT).read_text(encoding="utf-8").splitlines()
        if (folder / VALIDATION).exists():
            self.validation = (folder / VALIDATION).read_text(encoding="utf-8").splitlines()

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self, result: StepResult, *, memory_bytes: int, data_seconds: float) -> None:
        """A step ended."""
        seconds = max(1e-9, time.monotonic() - self._began)
        rate = result.tokens / seconds
        flops = rate * self.flops_per_token
        mfu = None if self.peak_flops is None else flops / self.peak_flops
        self.results.append(result.to_json())
        entry: dict[str, Any] = {"step": result.step, "seconds": round(seconds, 6), "tokens_per_second": round(rate, 3)}
        entry["data_wait_seconds"] = round(data_seconds, 6)
        entry |= {} if mfu is None else {"mfu": round(mfu, 5)}
        self.throughput.append(json.dumps(entry))
        log.info("%s", format_line(result, self.steps, memory_bytes, rate, flops, mfu))
        gauges = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "memory_bytes": float(memory_bytes),
            "data_wait_seconds": data_seconds,
        }
        gauges |= {} if mfu is None else {"mfu": mfu}
        self.progress.update(
            done=result.step, total=self.steps, unit="steps", gauges=gauges,
            rates={"tokens_per_second": rate, "flops_per_second": flops},
        )  # fmt: skip

    def validated(self, step: int, loss: float, loss_tokens: int, seconds: float) -> None:
        """A validation after a step ended; times stay out of its line, which is a function of inputs and spec."""
        self.validation.append(json.dumps({"step": step, "loss": loss, "loss_tokens": loss_tokens}))
        width = len(str(self.steps))
        log.info("validation after step %*d/%d  loss %8.4f  %s tokens  %.1f s", width, step, self.steps, loss,
                 f"{loss_tokens:,}", seconds)  # fmt: skip
        self.progress.update(gauges={"validation_loss": loss})

    def validation_scores(self) -> dict[str, float]:
        """The last validation's loss, if there was one."""
        return {"validation_loss": float(json.loads(self.validation[-1])["loss"])} if self.validation else {}

    def losses(self) -> list[float]:
        """Of all steps so far."""
        return [float(json.loads(line)["loss"]) for line in self.results]

    def write(self, folder: Path) -> None:
        """``metrics.jsonl``, ``throughput.jsonl`` and, where there were validations, ``validation.jsonl``."""
        (folder / METRICS).write_text("".join(f"{line}\n" for line in self.results), encoding="utf-8")
        (folder / THROUGHPUT).write_text("".join(f"{line}\n" for line in self.throughput), encoding="utf-8")
        if self.validation:
            (folder / VALIDATION).write_text("".join(f"{line}\n" for line in self.validation), encoding="utf-8")


def format_line(result: StepResult, steps: int, memory_bytes: int, rate: float, flops: float, mfu: float | None) -> str:
    """Step, loss, gradient norm, memory, tokens/s, TFLOPS, MFU: aligned, so that columns can be read downwards."""
    width = len(str(steps))
    line = (
        f"step {result.step:>{width}}/{steps}  loss {result.loss:8.4f}  grad norm {result.grad_norm:8.3f}  "
        f"memory {memory_bytes / 2**30:6.2f} GiB  {rate:>10,.0f} tok/s  {flops / 1e12:8.3f} TFLOPS"
    )
    return line if mfu is None else f"{line}  MFU {100 * mfu:5.1f} %"


def flops_per_token(parameters: int, layers: int, hidden: int, length: int) -> float:
    """Of forward and backward: 6 a parameter, 12 a layer, hidden unit and position for attention.

    Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    return 6.0 * parameters + 12.0 * layers * hidden * length


def peak_flops(device_name: str, devices: int) -> float | None:
    """Of all devices together; None for one that is not in the table."""
    return next((peak * devices for name, peak in _PEAKS.items() if name in device_name), None)


@functools.cache
def measured_peak(size: int = 512, turns: int = 5) -> float:
    """FLOP/s of this process in the best of some fp32 matrix products: what a CPU can do at most, about."""
    import torch

    a, b = torch.ones(size, size), torch.ones(size, size)
    best = math.inf
    for _ in range(turns):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def resident_bytes() -> int:
    """Resident memory of this process."""
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def summary(losses: list[float]) -> Mapping[str, float]:
    """Headline figures: the first loss, and the mean of the last ten steps."""
    last = losses[-10:]
    return {"first_loss": losses[0], "final_loss": sum(last) / len(last)}
