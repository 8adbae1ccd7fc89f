"""The pages for users: what they claim to quote is what is there, and the index leads to all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructpt.local.spec_file import parse_resource

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def fenced(page: Path, language: str = "yaml") -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def without_endpoints(value: Any) -> Any:
    """The same with one address for every server."""
    if isinstance(value, dict):
        return {k: "https://s3" if k == "endpoint" else without_endpoints(v) for k, v in value.items()}
    return [without_endpoints(v) for v in value] if isinstance(value, list) else value


def test_the_file_of_the_cluster_page_is_the_one_that_is_tested() -> None:
    (shown,) = [block for block in fenced(DOCS / "getting-started" / "cluster.md") if "InstructionPretraining" in block]
    tested = yaml.safe_load((ROOT / "tests" / "e2e" / "pipeline.yaml").read_text())
    assert without_endpoints(yaml.safe_load(shown)) == without_endpoints(tested)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_yaml_of_a_page_is_yaml_and_objects_of_ours_are_valid(page: Path) -> None:
    for block in fenced(page):
        for found in yaml.safe_load_all(block):
            if isinstance(found, dict) and str(found.get("apiVersion", "")).startswith("instructpt.dev/"):
                assert parse_resource(found, where=page.name)


def test_every_page_is_reached_from_the_index_and_stands_in_the_site() -> None:
    index, site = (DOCS / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        name = page.relative_to(DOCS).as_posix()
        if name != "index.md":
            assert name in site, "mkdocs.yml"
            assert f"]({name})" in index or name.startswith("reference/"), "docs/index.md"


@pytest.mark.parametrize("page", ["README.md", "docs/operator-guides/install.md", "docs/getting-started/cluster.md"])
def test_whoever_is_stuck_finds_the_page_on_trouble(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "user-guides/lifecycle.md" in text
    assert "user-guides/troubleshooting.md" in text
