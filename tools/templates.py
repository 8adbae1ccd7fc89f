"""Write docs/reference/templates.md: how many own patterns there are, and how often each is used.

``--list`` prints every pattern with its share instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from instructpt.synthesis.templates import NativeTemplates, Templates, load
from instructpt.synthesis.templates.lint import GRAM, OVERLAP_LIMIT
from instructpt.synthesis.templates.usage import MOST_OF_ONE, RENDERS, SHAPES, Usage, by_category, ids_of, measure

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "templates.md"
TITLES = {
    "free": "questions with a free answer",
    "options": "questions with options",
    "cot": "questions with a chain of thought",
    "options-cot": "questions with options and a chain of thought",
    "openers": "how a document is opened",
    "joiners": "the line between a document and its pairs",
    "inverted": "pairs before their document",
    "dialog_openings": "how a dialog starts",
    "dialog_inverted_closings": "how a dialog asks for its document",
    "numbered": "numbered questions, then their answers",
    "number_styles": "how questions are numbered",
    "inline": "examples in line, then a question",
    "next_turn": "a dialog and the turn that comes next",
    "speakers": "names of two speakers",
    "inline_examples": "how examples stand in line",
    "labels": "how options are listed",
}
HEAD = f"""# Templates

<!-- Written by tools/templates.py; do not edit. -->

What the [own template set](../user-guides/templates.md) holds, and how often it is used: {RENDERS:,} chains of one to
three documents with up to five pairs of all kinds, rendered with seeds of their own. No pattern or style may stand in
more than {MOST_OF_ONE:.0%} of the texts, and no two patterns of a category may share {OVERLAP_LIMIT:.0%} or more of the
{GRAM}-grams of the shorter one; tests hold the set to both. `python tools/templates.py --list` prints every pattern.

"""


def page(used: NativeTemplates, usage: Usage) -> str:
    """The page."""
    shapes = ["| shape | share of texts |", "| --- | ---: |"]
    shapes += [f"| {shape} | {usage.share(shape):.1%} |" for shape in SHAPES]
    rows = ["| category | what | number | most used one | least used one |", "| --- | --- | ---: | ---: | ---: |"]
    rows += [
        f"| `{found.name}` | {TITLES[found.name]} | {found.number} | {found.most_share:.2%} | {found.least_share:.2%} |"
        for found in by_category(usage, ids_of(used.patterns))
    ]
    return HEAD + "\n".join(shapes) + "\n\n" + "\n".join(rows) + "\n"


def listing(used: NativeTemplates, usage: Usage) -> Iterator[str]:
    """Every pattern, the most used first within its category."""
    for name, group in used.patterns.patterns.items():
        for pattern in sorted(group, key=lambda member: -usage.counts.get(member.id, 0)):
            yield f"{usage.share(pattern.id):7.2%}  {name}  {pattern.text!r}"


def main(argv: list[str]) -> int:
    """Write the page, or print the list."""
    used: Templates = load()
    assert isinstance(used, NativeTemplates)
    usage = measure(used)
    if "--list" in argv:
        print("\n".join(listing(used, usage)))
        return 0
    text = page(used, usage)
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
