from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from instructpt.local.spec_file import load_resource

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [*ROOT.glob("manifests/samples/*.yaml"), *ROOT.glob("examples/*.yaml"), *ROOT.glob("instructpt/recipes/*.yaml")]
)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date() -> None:
    stale = [str(p) for p, text in generator().outputs().items() if not p.exists() or p.read_text() != text]
    assert not stale, f"run make generate: {stale}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_sample_example_and_recipe_is_valid(path: Path) -> None:
    assert load_resource(path).metadata.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_bucket_comes_with_its_credentials(path: Path) -> None:
    """Whoever copies a file should not learn from a refused request that one of its locations lacks them."""
    for place in places(yaml.safe_load(path.read_text())["spec"]):
        assert "secretRef" in place, place["uri"]


def places(value: Any) -> Iterator[dict[str, Any]]:
    """Everything that lies on S3."""
    if isinstance(value, dict):
        if str(value.get("uri", "")).startswith("s3://"):
            yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from places(inner)


def test_there_is_a_sample_of_every_kind() -> None:
    kinds = {load_resource(p).kind for p in ROOT.glob("manifests/samples/*.yaml")}
    assert kinds == {"Corpus", "SynthesisJob", "TrainingJob", "EvaluationJob", "InstructionPretraining"}
