"""The pattern file of a user's own checkout of the reference implementation (microsoft/LMOps, instruction_pretrain).

It is a Python file: reading it runs it, once, in a namespace of its own. Nothing of it is held in this project; what
is known here is the names it must define and the placeholders its patterns may have.
"""

from __future__ import annotations

import hashlib
import importlib.util
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from instructpt.errors import ConfigError

FIELD = "templates"
# Where the file lies in a checkout, from the folder that a user may name.
PLACES = ("", "read_compre_pt.py", "utils/read_compre_pt.py", "instruction_pretrain/utils/read_compre_pt.py")

# Group of few-shot patterns in the file -> category here and the placeholders its patterns may have.
FEW_SHOT = {
    "qa": ("free", {"question", "answer"}),
    "qa_w_option": ("options", {"question", "answer", "options_", "option_answer"}),
    "qa_w_cot": ("cot", {"question", "answer", "cot"}),
    "qa_w_option_w_cot": ("options-cot", {"question", "answer", "options_", "option_answer", "cot"}),
    "numbered_questions": ("numbered", {"context", "numbered_questions", "numbered_answers"}),
    "next_turn_dialog": ("next-turn", {"dialog_", "answer"}),
}
INLINE = {"explain_afterwards": "inline-explained", "no_explicit_explain": "inline"}
INLINE_PLACEHOLDERS = {"context", "ex_input", "ex_output", "ex_explanation", "input", "output"}
# List of the file -> name here.
STRINGS = {
    "READ_START_STRING_CANDIDATES": "openers",
    "READ_END_STRING_CANDIDATES": "opener_ends",
    "COMPRE_START_STRING_CANDIDATES": "joiners",
    "QA_START_STRING_CANDIDATES": "inverted",
    "QA_END_STRING_CANDIDATES": "inverted_ends",
    "TEXT_START_STRING_CANDIDATES": "inverted_documents",
    "OPT_START_STRING_CANDIDATES": "option_headings",
    "DIALOG_START_STRING_CANDIDATES": "dialog_headings",
    "UNANSWERABLE_OPTIONS": "none_of_these",
}
LABELS = {
    "OPT_ITEM_NAME_CANDIDATES": "option_labels",
    "OPT_ITEM_END_STR_CANDIDATES": "option_ends",
    "QUESTION_ITEM_NAME_CANDIDATES": "question_labels",
    "DIALOG_ITEM_NAME_CANDIDATES": "speakers",
    "DIALOG_ITEM_END_STR_CANDIDATES": "turn_ends",
}
_QUESTIONS = ("free", "options", "cot", "options-cot")


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """A pattern of one example: the halves that hold input and target, and what stands around them."""

    id: str
    inputs: str
    targets: str
    inputs_prefix: str
    targets_prefix: str
    between: str
    separator: str

    @property
    def body(self) -> str:
        """The example without the separator before it."""
        return f"{self.inputs_prefix}{self.inputs}{self.between}{self.targets_prefix}{self.targets}"

    @property
    def loses_text(self) -> bool:
        """Whether a question or its answer has no place in it."""
        found = placeholders(self.body)
        return "question" not in found or not found & {"answer", "option_answer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A pattern of examples in line: the context, an example, and the question that is still open."""

    id: str
    context: str
    example: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutPatterns:
    """Everything that is drawn from in the reference's file.

    Attributes:
        digest: Hex sha256 of the file.
        few_shot: Category to patterns.
        inline: Category to patterns.
        strings: Name to texts.
        labels: Name to lists of labels, one label for each entry.
    """

    digest: str
    few_shot: Mapping[str, tuple[FewShot, ...]]
    inline: Mapping[str, tuple[Inline, ...]]
    strings: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[tuple[str, ...], ...]]

    def without_losses(self) -> CheckoutPatterns:
        """The same without patterns that have no place for a question or its answer."""
        kept = {
            category: tuple(p for p in group if category not in _QUESTIONS or not p.loses_text)
            for category, group in self.few_shot.items()
        }
        return CheckoutPatterns(
            digest=self.digest, few_shot=kept, inline=self.inline, strings=self.strings, labels=self.labels
        )


def find(path: str) -> Path:
    """The pattern file that ``path`` names: itself, or in a checkout of ``instruction_pretrain`` or of LMOps.

    Raises:
        ConfigError: It is not there.
    """
    given = Path(path).expanduser()
    for place in PLACES:
        file = given / place if place else given
        if file.is_file():
            return file.resolve()
    raise ConfigError(
        "there is no template set native by another name, and no pattern file at this path",
        field=FIELD,
        value=path,
        fix="use templates: native, or the path of instruction_pretrain in your checkout of microsoft/LMOps",
    )


def read(path: str) -> CheckoutPatterns:
    """Run the pattern file and take what it defines; a file that has not changed is run once.

    Raises:
        ConfigError: The file is missing, cannot be run, or is not the reference's pattern file.
    """
    file = find(path)
    return _read(file, hashlib.sha256(file.read_bytes()).hexdigest())


@cache
def _read(file: Path, digest: str) -> CheckoutPatterns:
    module = _run(file)
    groups, inline = _value(module, file, "FEWSHOT_PATTERNS"), _value(module, file, "INLINE_FEWSHOT_PATTERNS")
    try:
        few_shot = {
            category: tuple(_few_shot(category, found) for found in groups[name])
            for name, (category, _) in FEW_SHOT.items()
        }
        in_line = {
            category: tuple(_inline(category, found) for found in inline[name]) for name, category in INLINE.items()
        }
    except (KeyError, AttributeError, TypeError) as error:
        raise _foreign(file, f"its patterns are of another kind ({error})") from error
    strings = {name: tuple(map(str, _value(module, file, given))) for given, name in STRINGS.items()}
    labels = {name: tuple(tuple(map(str, x)) for x in _value(module, file, given)) for given, name in LABELS.items()}
    patterns = CheckoutPatterns(digest=digest, few_shot=few_shot, inline=in_line, strings=strings, labels=labels)
    for fault in _faults(patterns):
        raise _foreign(file, fault)
    return patterns


def _run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("instructpt_reference_patterns", file)
    if spec is None or spec.loader is None:
        raise _foreign(file, "it is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # Whatever a file that is not ours raises, it cannot be used.
    except Exception as error:
        raise _foreign(file, f"running it raised {type(error).__name__}: {error}") from error
    return module


def _value(module: ModuleType, file: Path, name: str) -> Any:
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise _foreign(file, f"it defines no {name}") from error
    if not found:
        raise _foreign(file, f"its {name} is empty")
    return found


def _foreign(file: Path, why: str) -> ConfigError:
    return ConfigError(
        f"this is not the reference's pattern file: {why}",
        field=FIELD,
        value=str(file),
        fix="name instruction_pretrain/utils/read_compre_pt.py of your checkout of microsoft/LMOps",
    )


def _id(category: str, text: str) -> str:
    return f"{category}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _few_shot(category: str, found: Any) -> FewShot:
    parts = (found.inputs_prefix, found.inputs, found.x_y_delimiter, found.targets_prefix, found.targets)
    return FewShot(
        id=_id(category, "".join((found.example_separator, *parts))),
        inputs=found.inputs,
        targets=found.targets,
        inputs_prefix=found.inputs_prefix,
        targets_prefix=found.targets_prefix,
        between=found.x_y_delimiter,
        separator=found.example_separator,
    )


def _inline(category: str, found: Any) -> Inline:
    example = found.ex_input + found.ex_output + found.example_separator
    last = found.testing_input + found.testing_output
    return Inline(id=_id(category, found.context + example + last), context=found.context, example=example, last=last)


def placeholders(text: str) -> set[str]:
    """The names in braces of a format string."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def _faults(patterns: CheckoutPatterns) -> Iterator[str]:
    """Placeholders that nothing would fill in; checked here so that no render can fail."""
    for category, allowed in FEW_SHOT.values():
        yield from _unknown(category, (p.body for p in patterns.few_shot[category]), allowed)
    for category, group in patterns.inline.items():
        allowed = INLINE_PLACEHOLDERS - ({"ex_explanation"} if category == "inline" else set())
        yield from _unknown(category, (p.context + p.example + p.last for p in group), allowed)
    for name in ("option_labels", "question_labels", "speakers"):
        if any(len(labels) < 2 for labels in patterns.labels[name]):
            yield f"its {name} have lists of fewer than two labels"


def _unknown(category: str, texts: Iterable[str], allowed: set[str]) -> Iterator[str]:
    try:
        found = sorted({name for text in texts for name in placeholders(text)} - allowed)
    except ValueError as error:
        yield f"a pattern for {category} has unbalanced braces ({error})"
        return
    if found:
        yield f"patterns for {category} have unknown placeholders: {', '.join(found)}"
