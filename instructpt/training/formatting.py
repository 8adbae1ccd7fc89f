"""Data formatting of instructions: a record becomes a prompt and what is learned after it.

Data formatting decides much of what a small model gains from instruction tuning (Fauber, arXiv 2402.05616), so it is a
setting. The loss is taken from the answer on: what a template holds after ``{answer}`` is learned with it, and so is
the end of the sequence. Spaces right before ``{answer}`` belong to what is learned, since a tokenizer joins them to the
first word; a prompt at inference is the template up to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructpt.api.v1alpha1.sourceformats import Formatting, placeholders


class Formatter:
    """Applies one formatting.

    Args:
        formatting: None is question, a space, answer.
        question_field: Field of a record that holds the question.
        answer_field: Field that holds the answer.

    Attributes:
        fields: Fields that are read from each record.
    """

    def __init__(self, formatting: Formatting | None, question_field: str, answer_field: str) -> None:
        formatting = formatting or Formatting(name="space")
        named = placeholders(formatting.text)
        head = formatting.text[: named[-1][1]]
        self._prompt = head.rstrip(" ")
        self._answer = formatting.text[len(self._prompt) :]
        self._names = {"question": question_field, "answer": answer_field}
        if any(name == "context" for name, _ in named):
            self._names["context"] = formatting.context_field
        self._optional = self._names.get("context")
        self.fields: list[str] = list(dict.fromkeys(self._names.values()))

    def split(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """The prompt, and what is learned."""
        values = {name: record.get(field) or "" for name, field in self._names.items()}
        return self._prompt.format_map(values), self._answer.format_map(values)

    def fault(self, record: Mapping[str, Any], fields: Sequence[str]) -> str | None:
        """Why a record cannot be used; None where it can. A context may be empty or absent."""
        for name in fields:
            value = record.get(name)
            if name == self._optional and name not in (self._names["question"], self._names["answer"]):
                if value is not None and not isinstance(value, str):
                    return f"field {name!r} holds {type(value).__name__}, not a string"
                continue
            if value is None:
                return f"no field {name!r} (its fields are: {', '.join(list(record)[:50])})"
            if not isinstance(value, str):
                return f"field {name!r} holds {type(value).__name__}, not a string"
            if not value or value.isspace():
                return f"field {name!r} is empty"
        return None
