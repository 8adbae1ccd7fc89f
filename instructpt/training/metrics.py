"""What a step reports: one aligned log line, one line of ``metrics.jsonl``, one of ``throughput.jsonl``."""

from __future__ import annotations

import json
import logging
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
        peak_flops: Of all devices together; None where it is not known, as on a CPU: then there is no MFU.
        progress: Live figures.
    """

    steps: int
    flops_per_token: float
    peak_flops: float | None
    progress: Progress
    results: list[str] = field(default_factory=list)
    throughput: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def restore(self, folder: Path) -> None:
        """Take up what a checkpoint kept."""
        self.results = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        self.throughput = (folder / THROUGHPUT).read_text(encoding="utf-8").splitlines()

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self, result: StepResult, *, memory_bytes: int, data_seconds: float) -> None:
        """A step ended."""
        seconds = max(1e-9, time.monotonic() - self._began)
        rate = result.tokens / seconds
        mfu = None if self.peak_flops is None else rate * self.flops_per_token / self.peak_flops
        self.results.append(result.to_json())
        entry: dict[str, Any] = {"step": result.step, "seconds": round(seconds, 6), "tokens_per_second": round(rate, 3)}
        entry["data_wait_seconds"] = round(data_seconds, 6)
        entry |= {} if mfu is None else {"mfu": round(mfu, 5)}
        self.throughput.append(json.dumps(entry))
        log.info("%s", format_line(result, self.steps, memory_bytes, rate, mfu))
        gauges = {
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "memory_bytes": float(memory_bytes),
            "data_wait_seconds": data_seconds,
        }
        gauges |= {} if mfu is None else {"mfu": mfu}
        self.progress.update(
            done=result.step, total=self.steps, unit="steps", gauges=gauges, rates={"tokens_per_second": rate}
        )

    def losses(self) -> list[float]:
        """Of all steps so far."""
        return [float(json.loads(line)["loss"]) for line in self.results]

    def write(self, folder: Path) -> None:
        """``metrics.jsonl`` and ``throughput.jsonl``."""
        (folder / METRICS).write_text("".join(f"{line}\n" for line in self.results), encoding="utf-8")
        (folder / THROUGHPUT).write_text("".join(f"{line}\n" for line in self.throughput), encoding="utf-8")


def format_line(result: StepResult, steps: int, memory_bytes: int, rate: float, mfu: float | None) -> str:
    """Step, loss, gradient norm, memory, tokens/s, MFU: aligned, so that columns can be read downwards."""
    width = len(str(steps))
    line = (
        f"step {result.step:>{width}}/{steps}  loss {result.loss:8.4f}  grad norm {result.grad_norm:8.3f}  "
        f"memory {memory_bytes / 2**30:6.2f} GiB  {rate:>10,.0f} tok/s"
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


def resident_bytes() -> int:
    """Resident memory of this process."""
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def summary(losses: list[float]) -> Mapping[str, float]:
    """Headline figures: the first loss, and the mean of the last ten steps."""
    last = losses[-10:]
    return {"first_loss": losses[0], "final_loss": sum(last) / len(last)}
