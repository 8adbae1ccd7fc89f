"""The report for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from instructpt.evaluation.metrics import MAJORITY, UNTRAINED
from instructpt.evaluation.verdict import count, in_order, judged_arm, show

# "bits-per-byte" says it.
UNITS_IN_NAMES = ("bits/byte",)


def render_table(report: Mapping[str, Any]) -> RenderableType:
    """Metrics by model, what the arms were trained on, and what it means; degrades with what the report lacks.

    Args:
        report: The content of ``report.json``.
    """
    parts: list[RenderableType] = []
    if report["metrics"]:
        parts += [_metrics(report), ""]
    if any(arm.get("train_tokens") for arm in report["arms"].values()):
        parts += [_training(report), ""]
    verdict = report["verdict"]
    parts.append(Text(verdict["headline"], style="bold"))
    parts += [_bullet(text) for text in verdict["findings"]]
    if verdict["limits"]:
        parts += ["", Text("What this does not show", style="bold")]
        parts += [_bullet(text) for text in verdict["limits"]]
    if report["gate"]["verdict"] != "None":
        gate = report["gate"]
        parts += ["", Text(f"Gate {gate['verdict']}: {gate['reason']}", style="bold")]
    if report["absent"]:
        parts += ["", Text(f"No output was found of: {', '.join(report['absent'])}", style="yellow")]
    return Group(*parts)


def _metrics(report: Mapping[str, Any]) -> Table:
    arm = judged_arm(report["metrics"])
    title = "Held-out documents" + (f", gain of {arm} over {report['baseline']}" if arm else "")
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    models = [*report["arms"], UNTRAINED, MAJORITY]
    shown = [name for name in models if any(name in m["values"] for m in report["metrics"].values())]
    for name in shown:
        table.add_column(escape(name), justify="right", style="dim" if name in (UNTRAINED, MAJORITY) else None)
    if arm is not None:
        table.add_column("gain", justify="right", no_wrap=True)
    for name, metric in in_order(report["metrics"]):
        arrow = "↓" if metric["direction"] == "lower" else "↑"
        unit = "" if metric["unit"] in UNITS_IN_NAMES else f" [dim]{metric['unit']}[/]"
        cells = [f"{name} {arrow}{unit}"]
        cells += [_value(name, metric["values"].get(model)) for model in shown]
        if arm is not None:
            cells.append(_gain(name, metric, arm))
        table.add_row(*cells)
    return table


def _value(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "[dim]–[/]"
    error = "" if entry["stderr"] is None else f" [dim]±{show(name, entry['stderr'])}[/]"
    return show(name, entry["value"]) + error


def _gain(name: str, metric: Mapping[str, Any], arm: str) -> str:
    gain = metric["gains"].get(arm)
    if not metric["informative"]:
        return "[dim]not informative[/]"
    if gain is None:
        return "[dim]–[/]"
    colour = "dim" if not gain["beyond_noise"] else ("green" if gain["gain"] > 0 else "red")
    return f"[{colour}]{show(name, gain['gain'], sign=True)}[/]"


def _training(report: Mapping[str, Any]) -> Table:
    table = Table(title="Training", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("arm", "tokens", "steps", "documents", "passes", "last loss"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name, arm in report["arms"].items():
        losses = [run["final_loss"] for run in arm["runs"] if run["final_loss"] is not None]
        table.add_row(
            escape(name),
            _number(arm["train_tokens"]),
            _number(arm["train_steps"]),
            _number(arm["unique_documents"]),
            "–" if arm["repeats"] is None else f"{arm['repeats']:.2f}",
            "–" if not losses else f"{sum(losses) / len(losses):.3f}",
        )
    if report["synthesizer"]:
        own = report["synthesizer"]
        table.caption = f"synthesizer tuned on {count(own['train_tokens'] or 0)} tokens"
        table.caption_justify = "left"
    return table


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _bullet(text: str) -> RenderableType:
    # A hanging indent: the mark stands in the margin of the paragraph.
    grid = Table.grid(padding=(0, 1))
    grid.add_row("•", Text(text))
    return Padding(grid, (0, 0, 0, 2))
