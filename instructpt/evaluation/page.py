"""``report.html``: one file that needs nothing else, readable in light and dark and on paper, without scripts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from instructpt.corpus.augmented import PairRow
from instructpt.evaluation.highlight import highlight
from instructpt.evaluation.metrics import MAJORITY, UNTRAINED
from instructpt.evaluation.pair_quality import describe
from instructpt.evaluation.verdict import count, in_order, judged_arm, show

Report = Mapping[str, Any]


def render_page(report: Report, figures: Mapping[str, str], *, notes: Sequence[str] = ()) -> str:
    """The page.

    Args:
        report: The content of ``report.json``.
        figures: Inline SVG by name: ``loss``, ``throughput``, ``pairs`` and ``metric-<name>``; any may be absent.
        notes: What the page could not show, and why.
    """
    css = resources.files("instructpt.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    sections = [
        _head(report),
        _results(report, figures),
        _training(report, figures),
        _synthesis(report, figures),
        _example(report),
        _questions(report),
        _data(report),
        _lineage(report),
        _footer(report, notes),
    ]
    title = escape(f"{report['name']}: instruct against vanilla" if report["name"] else "instructpt report")
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    verdict = report["verdict"]
    out = f"<h1>{escape(report['name'])} · instruction pre-training</h1>\n"
    out += f'<p class="headline">{escape(verdict["headline"])}</p>\n'
    if report["gate"]["verdict"] != "None":
        style = "good" if report["gate"]["verdict"] == "Passed" else "bad"
        out += f'<p>Gate <span class="{style}">{escape(report["gate"]["verdict"])}</span>: '
        out += f"{escape(report['gate']['reason'])}.</p>\n"
    if verdict["findings"]:
        out += f'<div class="card">{_list(verdict["findings"])}</div>\n'
    if verdict["limits"]:
        out += f'<h2>What this does not show</h2>\n<div class="card limits">{_list(verdict["limits"])}</div>\n'
    return out


def _results(report: Report, figures: Mapping[str, str]) -> str:
    metrics = report["metrics"]
    if not metrics:
        return ""
    models = [n for n in (*report["arms"], UNTRAINED, MAJORITY) if any(n in m["values"] for m in metrics.values())]
    arm = judged_arm(metrics)
    heads = ["metric", *models] + ([f"gain of {arm}"] if arm else [])
    rows = []
    for name, metric in in_order(metrics):
        arrow = "↓" if metric["direction"] == "lower" else "↑"
        cells = [f'{escape(name)}<span class="soft">{escape(metric["unit"])} {arrow} {_better(metric)}</span>']
        cells += [_value(name, metric["values"].get(model)) for model in models]
        if arm:
            cells.append(_gain(name, metric, arm))
        rows.append(cells)
    evaluation = report["evaluation"]
    counts = evaluation.get("counts") or {}
    bootstrap = evaluation.get("bootstrap") or {}
    note = (
        f"Measured on {counts.get('documents_used', 0):,} held-out documents and {counts.get('questions', 0):,} "
        f"questions, in windows of {evaluation.get('context_tokens')} tokens, with {evaluation.get('shots')} solved "
        "example(s) before each question. ± is the standard error, brackets are 95 % intervals, from "
        f"{bootstrap.get('resamples')} resamples of the documents, the same for all models. untrained: the same "
        "architecture with random weights; majority: the most frequent right answer of each kind of question, given "
        "always (it has seen the answers)."
    )
    out = f"<h2>Results</h2>\n{_table(heads, rows)}\n<p class='soft small'>{escape(note)}</p>\n"
    for name, metric in in_order(metrics):
        if f"metric-{name}" in figures:
            caption = f"{escape(metric['title'])} <span>· {escape(name)}: {escape(metric['about'])}</span>"
            if not metric["informative"]:
                caption += f' <span class="tag" title="{escape(metric["reason"])}">not informative</span>'
            out += f"<figure><figcaption>{caption}</figcaption>{figures[f'metric-{name}']}</figure>\n"
    return out


def _training(report: Report, figures: Mapping[str, str]) -> str:
    runs = [(name, run) for name, arm in report["arms"].items() for run in arm["runs"]]
    if not runs:
        return ""
    heads = ["arm", "seed", "tokens", "steps", "documents", "passes", "last loss"]
    rows = [
        [
            escape(name),
            _or_dash(run["seed"]),
            _number(run["train_tokens"]),
            _number(run["train_steps"]),
            _number(run["unique_documents"]),
            "–" if run["repeats"] is None else f"{run['repeats']:.2f}",
            "–" if run["final_loss"] is None else f"{run['final_loss']:.3f}",
        ]
        for name, run in runs
    ]
    out = f"<h2>Training</h2>\n{_table(heads, rows)}\n"
    size = next((run["parameters"] for _, run in runs if run["parameters"]), None)
    note = (
        "Losses of arms compare only where they train on the same text: text with pairs is easier or harder by itself."
    )
    out += f'<p class="soft small">{f"{count(size)} parameters. " if size else ""}{note}</p>\n'
    for name, caption in (("loss", "Training loss"), ("throughput", "Throughput")):
        if name in figures:
            out += f"<figure><figcaption>{caption}</figcaption>{figures[name]}</figure>\n"
    return out


def _synthesis(report: Report, figures: Mapping[str, str]) -> str:
    synthesis, own = report["synthesis"], report["synthesizer"]
    if not synthesis and not own:
        return ""
    out = "<h2>Synthesis</h2>\n"
    if own:
        tasks = (own["tasks"].get("counts") or {}).get("pairs")
        made_from = f" from {tasks:,} mined pairs of the tune part" if tasks else ""
        loss = "" if own["final_loss"] is None else f", last loss {own['final_loss']:.3f} on the answers' side"
        out += f"<p>The synthesizer was tuned here on {count(own['train_tokens'] or 0)} tokens{made_from}{loss}.</p>\n"
    quality = synthesis.get("quality") or {}
    if quality:
        out += _definitions(describe(quality))
        if quality.get("only_first_chains"):
            out += f'<p class="soft small">Judged by the first {quality["only_first_chains"]:,} chains.</p>\n'
    if "pairs" in figures:
        out += f"<figure><figcaption>Pairs per document</figcaption>{figures['pairs']}</figure>\n"
    return out


def _example(report: Report) -> str:
    example = report["synthesis"].get("example")
    if not example:
        return ""
    pairs = [PairRow(**pair) for shot in example["shots"] for pair in shot["pairs"]]
    text = "".join(
        escape(s.text) if s.role == "text" else f'<mark class="{s.role}">{escape(s.text)}</mark>'
        for s in highlight(example["text"], pairs)
    )
    documents = ", ".join(shot["document"] for shot in example["shots"])
    return (
        "<h2>An augmented text, as the model reads it</h2>\n"
        f'<p class="soft small">Chain {escape(example["id"])}, from {escape(documents)}. '
        '<mark class="question">Questions</mark> and <mark class="answer">answers</mark> were synthesized; they may be '
        "wrong.</p>\n"
        f'<div class="card"><pre class="text">{text}</pre></div>\n'
    )


def _questions(report: Report) -> str:
    questions = report["questions"]
    if not questions:
        return ""
    models = list(dict.fromkeys(name for q in questions for name in q["predictions"]))
    rows = [
        [escape(q["question"]).replace("\n", "<br>"), escape(q["answer"])]
        + [_prediction(q["predictions"].get(model)) for model in models]
        for q in questions
    ]
    table = _table(["question on a held-out document", "answer", *models], rows, plain=True)
    return f"<h2>Some questions and what the models answered</h2>\n{table}\n"


def _prediction(said: Mapping[str, Any] | None) -> str:
    if said is None:
        return "–"
    text = escape(said["answer"] or "") or '<span class="soft">nothing</span>'
    return f'<span class="good">{text} ✓</span>' if said["right"] else text


def _data(report: Report) -> str:
    counts = (report["corpus"] or {}).get("counts") or {}
    if not counts:
        return ""
    lines = [(name.replace("_", " "), f"{number:,}") for name, number in counts.items() if isinstance(number, int)]
    split = report["corpus"].get("split") or {}
    if split:
        lines.append(("split", ", ".join(f"{name} {share:g}" for name, share in split.items())))
    evaluation = (report["evaluation"].get("counts") or {}) if report["evaluation"] else {}
    dropped = {k: v for k, v in evaluation.items() if k.startswith("dropped_")}
    if dropped:
        said = ", ".join(f"{v:,} {k.removeprefix('dropped_').replace('-', ' ')}" for k, v in dropped.items())
        lines.append(("pairs that made no question", said))
    return "<h2>Corpus</h2>\n" + _definitions(lines)


def _lineage(report: Report) -> str:
    if not report["lineage"]:
        return ""
    rows = [
        [escape(step), escape(entry["kind"]), f"<code>{escape(entry['digest'][:23])}</code>"]
        for step, entry in report["lineage"].items()
    ]
    table = _table(["stage", "kind", "digest of its manifest"], rows, plain=True)
    return f"<details><summary>Lineage: what every stage left, by content hash</summary>\n{table}\n</details>"


def _footer(report: Report, notes: Sequence[str]) -> str:
    said = [f"instructpt {report['versions']['instructpt']}."]
    if report["absent"]:
        said.append(f"No output was found of: {', '.join(report['absent'])}.")
    said += notes
    said.append("The numbers are in report.json, the losses in losses.csv beside this page.")
    return f"<footer>{escape(' '.join(said))}</footer>"


def _better(metric: Mapping[str, Any]) -> str:
    return f"{metric['direction']} is better"


def _value(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return '<span class="soft">–</span>'
    error = "" if entry["stderr"] is None else f'<span class="soft">± {show(name, entry["stderr"])}</span>'
    return show(name, entry["value"]) + error


def _gain(name: str, metric: Mapping[str, Any], arm: str) -> str:
    gain = metric["gains"].get(arm)
    if not metric["informative"]:
        return f'<span class="tag" title="{escape(metric["reason"])}">not informative</span>'
    if gain is None:
        return "–"
    low, high = gain["interval"] or (None, None)
    style = "" if not gain["beyond_noise"] else ("good" if gain["gain"] > 0 else "bad")
    interval = f"[{show(name, low, sign=True)}, {show(name, high, sign=True)}]"
    return f'<span class="{style}">{show(name, gain["gain"], sign=True)}</span><span class="soft">{interval}</span>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, plain: bool = False) -> str:
    """A table; ``heads`` are escaped here, cells are HTML already. ``plain`` sets text to the left."""
    style = ' class="plain"' if plain else ""
    head = "".join(f"<th{style}>{escape(str(cell))}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td{style}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _definitions(lines: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines) + "</dl>\n"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _or_dash(value: object) -> str:
    return "–" if value is None else escape(str(value))
