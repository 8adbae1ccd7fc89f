"""The reference implementation as an oracle: a user's checkout of it, imported as it is."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from instructpt.synthesis import Shot

VARIABLE = "INSTRUCTPT_REFERENCE"
NO_CHECKOUT = f"{VARIABLE} names no checkout of microsoft/LMOps (or of its folder instruction_pretrain)"


def folder() -> Path | None:
    """The folder ``instruction_pretrain`` of the checkout that the variable names."""
    given = Path(os.environ.get(VARIABLE) or "/nonexistent")
    for found in (given, given / "instruction_pretrain"):
        if (found / "utils" / "read_compre.py").is_file():
            return found
    return None


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The reference's functions, and its loop with any function in place of the model."""

    code: ModuleType

    def chain_prompt(self, chain: Sequence[Shot], document: str) -> str:
        earlier = "".join(
            self.code.cook_read(shot.document) + self.code.cook_compre(_qa(shot)) + self.code.eos_token
            for shot in chain
        )
        return earlier + str(self.code.cook_read(document))

    def parse(self, completion: str) -> list[tuple[str, str]]:
        return [(qa["Q"], qa["A"]) for qa in self.code.parse_comprehension(completion, deduplicate=True)]

    def texts(self, chains: Sequence[Sequence[Shot]], seed: int) -> list[str]:
        entries = [
            {"context": shot.document, "QA_list": _qa(shot), "inherit_from_prev": place > 0}
            for chain in chains
            for place, shot in enumerate(chain)
        ]
        return list(self.code.cook_pt_entries(read_collection=entries, random_seed=seed))

    def run(
        self, documents: Sequence[str], complete: Callable[[str], str], *, shots: int, window: int, new_tokens: int
    ) -> tuple[list[str], list[str]]:
        """The prompts and the texts of the loop in the reference's README."""
        prompts: list[str] = []

        class Model:
            def generate(self, asked: list[str], _: object) -> list[Any]:
                prompts.extend(asked)
                return [_Output(prompt=prompt, outputs=[_Text(text=complete(prompt))]) for prompt in asked]

        width = -(-len(documents) // shots)
        entries: list[Any] = []
        for number in range(shots):
            split = self.code.get_dataset(
                prev_examples=entries,
                cur_raw_texts=list(documents[number * width : (number + 1) * width]),
                max_model_len=window,
                max_new_tokens=new_tokens,
            )
            entries = self.code.run(split, Model(), None)
        texts: list[str] = []
        for number, entry in enumerate(entries):
            texts += self.code.cook_pt_entries(read_collection=copy.deepcopy(entry), random_seed=number + 12345)
        return prompts, texts


@dataclass(frozen=True, kw_only=True)
class _Text:
    text: str


@dataclass(frozen=True, kw_only=True)
class _Output:
    prompt: str
    outputs: list[_Text]


def _qa(shot: Shot) -> list[dict[str, str]]:
    return [{"Q": pair.question, "A": pair.answer} for pair in shot.pairs]


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """The reference's code, imported from the checkout; it is gone from the interpreter afterwards."""
    found = folder()
    if found is None:
        pytest.skip(NO_CHECKOUT)
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(found))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Oracle(code=importlib.import_module("utils.read_compre"))
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name == "utils" or name.startswith("utils."):
                del sys.modules[name]
