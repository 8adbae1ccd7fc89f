"""Rendered objects, byte by byte: a change here is a change of what runs on a cluster.

``INSTRUCTPT_WRITE_GOLDEN=1 python -m pytest tests/contract/test_golden_objects.py`` writes the files anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import rendering

from instructpt.cluster.render import to_yaml

GOLDEN = Path(__file__).parent / "golden" / "objects"


@pytest.mark.parametrize("name", rendering.CASES)
def test_objects_are_those_of_the_golden_file(name: str) -> None:
    resource, task = rendering.CASES[name]
    text = to_yaml(rendering.rendered(resource, task))
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("INSTRUCTPT_WRITE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(rendering.CASES)
