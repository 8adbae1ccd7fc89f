"""stdout is data, stderr is talk; one place that knows about terminals."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from instructpt.local.command import command

__all__ = ["Output", "command", "duration", "emit", "is_interactive", "out", "print_table", "quantity", "size", "talk"]

out = Console(soft_wrap=True, highlight=False)
talk = Console(stderr=True, soft_wrap=True, highlight=False)
_WIDEST = 10_000


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def emit(data: Any, output: Output) -> None:
    """Print machine-readable data to stdout."""
    if output is Output.JSON:
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def print_table(table: Table) -> None:
    """Print a table whole: where the terminal is too narrow its lines run on, but no cell is cut."""
    natural = Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum
    Console(width=max(out.width, natural), highlight=False).print(table)


def is_interactive() -> bool:
    """Whether a person sits at the terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not os.environ.get("CI")


def duration(seconds: float | None) -> str:
    """``0:07``, ``1:02:03``; ``?`` where unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def quantity(value: float | None) -> str:
    """``1.2M``, ``300k``, ``42``; ``?`` where unknown."""
    if value is None:
        return "?"
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes for people: ``1.5 GB``."""
    if value is None:
        return "?"
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"
