"""Figures as inline SVG whose colours are CSS variables, so that they follow the page into the dark.

Drawn with matplotlib; what it writes is made fit for standing inside a page: no XML prologue, no metadata, no
addresses, ids of its own in every figure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl

from instructpt.evaluation.metrics import MAJORITY, UNTRAINED

MAX_POINTS = 240
_WIDTH = 10.4
# Stand-ins that matplotlib writes and that are replaced by the variables of the page.
_INK, _FAINT = "#010203", "#040506"
_SERIES = ("#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718", "#191a1b")
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--line)", **{c: f"var(--series-{i})" for i, c in enumerate(_SERIES)}}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "instructpt",
    "font.size": 11.5,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": _INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

Row = Mapping[str, Any]


def colour(index: int) -> str:
    """Stand-in colour of the model with that index."""
    return _SERIES[index % len(_SERIES)]


def loss_curves(curves: Mapping[str, Sequence[Row]], colours: Mapping[str, int]) -> str:
    """Training loss over tokens, one line a model.

    Args:
        curves: Label -> rows with ``loss``, and ``tokens`` (of the step) or ``step``.
        colours: Label -> index of its colour.
    """

    def draw(axes: Any) -> None:
        for label, rows in curves.items():
            x, y = thin(*_loss_points(rows))
            axes.plot(x, y, color=colour(colours[label]), label=label)
        axes.set_xlabel("training tokens")
        axes.set_ylabel("loss (nats a token)")
        axes.xaxis.set_major_formatter(_counts())
        axes.legend(loc="upper right")

    return _figure("loss", draw, width=_WIDTH, height=4.2)


def throughput_curves(curves: Mapping[str, Sequence[Row]], colours: Mapping[str, int]) -> str:
    """Tokens per second over steps, one line a model."""

    def draw(axes: Any) -> None:
        for label, rows in curves.items():
            kept = [row for row in rows if row.get("tokens_per_second") is not None]
            x, y = thin([float(row["step"]) for row in kept], [float(row["tokens_per_second"]) for row in kept])
            axes.plot(x, y, color=colour(colours[label]), label=label)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.set_ylabel("tokens a second")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_counts())
        axes.legend(loc="lower right")

    return _figure("throughput", draw, width=_WIDTH, height=3.2)


def pairs_histogram(histogram: Mapping[str, int]) -> str:
    """Documents by the number of their pairs."""

    def draw(axes: Any) -> None:
        numbers = sorted(int(k) for k in histogram)
        axes.bar(numbers, [histogram[str(n)] for n in numbers], color=colour(0), width=0.72)
        axes.set_xlabel("pairs in a document")
        axes.set_ylabel("documents")
        axes.set_xticks(_ticks(numbers))
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(_whole_numbers())
        axes.yaxis.set_major_formatter(_counts())

    return _figure("pairs", draw, width=_WIDTH, height=3.0)


def metric_bars(name: str, metric: Row, models: Sequence[str], colours: Mapping[str, int]) -> str:
    """Values of one metric with their 95 % intervals, a bar a model."""
    shown = [model for model in models if model in metric["values"]]

    def draw(axes: Any) -> None:
        for place, model in enumerate(shown):
            entry = metric["values"][model]
            faint = model in (UNTRAINED, MAJORITY)
            axes.barh(place, entry["value"], color=_FAINT if faint else colour(colours[model]), height=0.62)
            if entry["interval"] is not None:
                low, high = entry["interval"]
                axes.plot([low, high], [place, place], color=_INK, linewidth=1.4)
        axes.set_yticks(range(len(shown)), shown)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        better = "lower is better" if metric["direction"] == "lower" else "higher is better"
        axes.set_xlabel(f"{metric['unit']}, {better}")
        axes.grid(visible=False, axis="y")

    return _figure(f"metric-{name}", draw, width=_WIDTH, height=0.7 + 0.34 * max(1, len(shown)))


def thin(x: Sequence[float], y: Sequence[float], most: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most ``most`` points, each the mean of as many neighbours."""
    size = -(-len(x) // most) if x else 1
    groups = range(0, len(x), size)
    return [_mean(x[i : i + size]) for i in groups], [_mean(y[i : i + size]) for i in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _loss_points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    x: list[float] = []
    y: list[float] = []
    total = 0.0
    for row in rows:
        total += float(row.get("tokens") or 0)
        if row.get("loss") is not None:
            x.append(total or float(row["step"]))
            y.append(float(row["loss"]))
    return x, y


def _ticks(numbers: Sequence[int]) -> list[int]:
    if not numbers:
        return []
    step = max(1, -(-(numbers[-1] + 1) // 16))
    return list(range(0, numbers[-1] + 1, step))


def _counts() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=6)


def _figure(name: str, draw: Callable[[Any], None], *, width: float, height: float) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return inline(out.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """A matplotlib SVG made fit for a page; see the head of this module."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\s+(width|height)="[\d.]+pt"', "", svg, count=2)
    # HTML knows href without a prefix.
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg.replace("<svg", f'<svg class="figure" role="img" aria-label="{name}"', 1)
