"""What a run shows while it goes: aligned lines, a live one on a terminal, plain ones every few seconds otherwise."""

from __future__ import annotations

import time
from typing import Any

from rich.live import Live
from rich.text import Text

from instructpt.api.runspec import StageResult
from instructpt.cli.console import duration, quantity, talk
from instructpt.plan.model import Plan, Stage

PLAIN_SECONDS = 10.0
WORTH_SAYING = 0.05
_SHOWN = ("documents", "pairs", "tokens", "rows", "steps")


class Panel:
    """A listener that draws. One line per stage; the running one is redrawn on a terminal."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last_plain = 0.0
        self._width = 10
        self._announced: set[str] = set()

    def planned(self, plan: Plan) -> None:
        """Say once what is already there."""
        self._width = max(len(s.step) for s in plan.stages) + 2
        for stage in plan.stages:
            if stage.result is not None and stage.step not in self._announced:
                self._announced.add(stage.step)
                self._line(stage, counts_text(stage.result.counts), "already done")

    def inputs_changed(self, stage: Stage) -> None:
        """Say why finished stages run again."""
        talk.print(
            f"  {stage.step}: the corpus has changed since it was inspected: stages are made again", markup=False
        )

    def stage_started(self, stage: Stage, attempt: int) -> None:
        """Begin a line."""
        self._started = self._last_plain = time.monotonic()
        self._announced.add(stage.step)
        text = "started" if attempt == 1 else f"started, attempt {attempt}"
        if talk.is_terminal:
            self._live = Live(self._text(stage, text, ""), console=talk, transient=True, refresh_per_second=4)
            self._live.start()

    def progressed(self, stage: Stage, figures: dict[str, Any]) -> None:
        """Redraw the line, or print it now and then."""
        elapsed = time.monotonic() - self._started
        text = figures_text(figures)
        eta = f"eta {duration(eta_seconds(figures, elapsed))}"
        if self._live is not None:
            self._live.update(self._text(stage, text, eta))
        elif time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            self._line(stage, text, eta)

    def stage_retried(self, stage: Stage, message: str, failures: int) -> None:
        """A failure that is tried again."""
        self._stop_live()
        self._line(stage, message.splitlines()[0], f"failed {failures}x, trying again")

    def stage_done(self, stage: Stage, result: StageResult, seconds: float) -> None:
        """End the line."""
        self._stop_live()
        self._line(stage, counts_text(result.counts), f"done {duration(seconds)}")
        cut, items = result.counts.get("cut_items", 0), result.counts.get("items", 0)
        if cut > items * WORTH_SAYING:
            talk.print(
                f"    {cut} of {items} texts are longer than sequenceLength and were cut; raise it to keep them whole"
            )

    def stopping(self, signals: int) -> None:
        """Say that the signal was heard."""
        self._stop_live()
        talk.print("Stopping: workers finish what they must keep ..." if signals == 1 else "Stopping at once.")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_live()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, stage: Stage, text: str, right: str) -> None:
        talk.print(self._text(stage, text, right))

    def _text(self, stage: Stage, text: str, right: str) -> Text:
        return Text.assemble("  ", (stage.step.ljust(self._width), "bold"), text.ljust(64), " ", (right, "cyan"))


def figures_text(figures: dict[str, Any]) -> str:
    """``3/4 shards, 435 pairs, 900 tok/s``."""
    parts = [f"{figures['done']}/{figures['total']} {figures['unit']}"] if figures["total"] else []
    parts += [f"{quantity(figures['counts'][n])} {n}" for n in _SHOWN if figures["counts"].get(n)]
    gauges = figures["gauges"]
    if "loss" in gauges:
        parts.append(f"loss {gauges['loss']:.3f}")
    if "validation_loss" in gauges:
        parts.append(f"validation {gauges['validation_loss']:.3f}")
    rate = figures["rates"].get("tokens_per_second")
    if rate:
        parts.append(f"{quantity(rate)} tok/s")
    return "; ".join([", ".join(parts), *figures.get("notes", {}).values()])


def counts_text(counts: Any) -> str:
    """The counts of a finished stage that people look for."""
    parts = [f"{quantity(counts[n])} {n}" for n in _SHOWN if counts.get(n)]
    return ", ".join(parts)


def eta_seconds(figures: dict[str, Any], elapsed: float) -> float | None:
    """Time left at the pace so far."""
    done, total = figures["done"], figures["total"]
    return elapsed * (total - done) / done if done and total else None
