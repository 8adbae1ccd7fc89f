"""How files of two formats become training text: collections of tasks, and instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from instructpt.api.base import ApiModel, Rule

FormattingName = Literal["space", "newline", "chat"]

FORMATTINGS: Mapping[FormattingName, str] = MappingProxyType(
    {
        "space": "{question} {answer}",
        "newline": "{question}\n{answer}",
        "chat": "<|user|>\n{question}\n<|assistant|>\n{answer}",
    }
)
"""The named data formattings. A formatting's text never changes its meaning: another one gets another name."""

PLACEHOLDERS = ("question", "context", "answer")
TEMPLATE_LIMIT = 600
"""Characters; checking longer ones would cost the API server more than it grants a definition."""

# {question} somewhere, {answer} last. The API server lets the rest pass, such as another name, and the plan refuses it:
# an expression for all of it would cost more than a definition may.
_TEMPLATE = r"\{question\}[\s\S]*\{answer\}([^{]|\{\{)*$"
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def placeholders(template: str) -> list[tuple[str, int]]:
    """Names between braces and where they begin, in their order; braces that stand for themselves are none."""
    found = _BRACES.finditer(template)
    return [(match[1], match.start()) for match in found if match[1] is not None]


def template_fault(template: str) -> str | None:
    """What is wrong with a user's template and how to mend it; None where it can be used."""
    lone = next((match for match in _BRACES.finditer(template) if match[0] in ("{", "}")), None)
    if lone is not None:
        return f"a lone {lone[0]!r} at character {lone.start()}; write it twice to have it in the text"
    names = [name for name, _ in placeholders(template)]
    unknown = next((name for name in names if name not in PLACEHOLDERS), None)
    if unknown is not None:
        return (
            f"{{{unknown}}} is no placeholder; there are {{question}}, {{answer}} and {{context}} "
            "(write {{ and }} for braces in the text)"
        )
    if names.count("answer") != 1:
        return f"{{answer}} stands in it {names.count('answer')} times; write it once: it is what is learned"
    if names[-1] != "answer":
        return f"{{{names[-1]}}} follows {{answer}}; put {{answer}} last, since the loss is taken from there on"
    if "question" not in names:
        return "{question} is missing; put it before {answer}"
    return None


_WANTED = (
    "formatting.template must hold {question}, may hold {context}, and ends its placeholders with {answer}, once; "
    "write {{ and }} for braces in the text"
)


def _checked_template(template: str) -> str:
    fault = template_fault(template)
    if fault is not None:
        raise ValueError(f"{_WANTED}: {fault}")
    return template


class Formatting(ApiModel):
    """Data formatting of instructions: a named one, or a template of one's own."""

    name: Annotated[
        FormattingName | None,
        Field(
            default=None,
            description="space: question, a space, answer. newline: a newline between them. chat: markers <|user|> and "
            "<|assistant|>, each on a line of its own, as ordinary text.",
        ),
    ] = None
    template: Annotated[
        str | None,
        Field(
            default=None,
            min_length=1,
            max_length=TEMPLATE_LIMIT,
            description="Text with {question}, {answer} (last) and, if wanted, {context}; {{ and }} are braces.",
        ),
        AfterValidator(lambda t: None if t is None else _checked_template(t)),
    ] = None
    context_field: Annotated[
        str,
        Field(
            default="context",
            max_length=253,
            description="Of a template with {context}: field that holds it; it may be empty or absent in a record.",
        ),
    ] = "context"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "formatting needs exactly one of name and template",
            "has(self.name) != has(self.template)",
            lambda s: (s.name is None) != (s.template is None),
        ),
        Rule(
            _WANTED,
            f"!has(self.template) || self.template.matches(r'{_TEMPLATE}')",
            lambda s: s.template is None or template_fault(s.template) is None,
        ),
    )

    @property
    def text(self) -> str:
        """The template, whichever way it was given."""
        return FORMATTINGS[self.name] if self.name is not None else str(self.template)


class TaskCollection(ApiModel):
    """Of format tasks: how examples are read from a collection of data sets, and put together."""

    context_field: Annotated[
        str, Field(default="context", max_length=253, description="Field that holds the context of the questions.")
    ] = "context"
    dataset_field: Annotated[
        str | None,
        Field(
            default=None,
            max_length=253,
            description="Field that names a record's data set; empty: a folder below uri is one, and so is a file.",
        ),
    ] = None
    examples_per_dataset: Annotated[
        int,
        Field(
            default=10_000,
            ge=1,
            le=10_000_000,
            description="Contexts of one data set at most; those with the most pairs are taken (arXiv 2406.14491).",
        ),
    ] = 10_000
    examples_per_sequence: Annotated[
        int,
        Field(
            default=4,
            ge=1,
            le=1000,
            description="Contexts with their pairs in one sequence at most, all of one data set, as many as fit.",
        ),
    ] = 4
