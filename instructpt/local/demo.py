"""``instructpt init``: a pipeline and a small raw corpus to start from."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from instructpt.corpus import builtin
from instructpt.errors import EnvironmentNotReadyError


def write_demo(folder: Path, documents: int) -> int:
    """Write ``pipeline.yaml`` and ``corpus/documents.jsonl``; returns how many documents there are.

    The documents are spread evenly over the documentation of Python's standard library.

    Raises:
        EnvironmentNotReadyError: This Python came without its sources.
    """
    found = builtin.documents()
    if not found:
        raise EnvironmentNotReadyError("this Python has no documentation to write", fix="use a full installation")
    step = max(1, len(found) // documents)
    chosen = found[::step][:documents]
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) + "\n" for d in chosen)
    (folder / "corpus" / "documents.jsonl").write_text(lines, encoding="utf-8")
    recipe = (resources.files("instructpt") / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    (folder / "pipeline.yaml").write_text(recipe, encoding="utf-8")
    return len(chosen)
