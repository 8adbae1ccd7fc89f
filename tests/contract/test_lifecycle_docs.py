"""The page on troubleshooting is generated from cases that were seen; every reason in it is one of ours."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from instructpt.api.reasons import MEANING, Reason

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "user-guides"
# What differs from run to run or from machine to machine has no place in the docs.
NOT_NORMAL = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b|\blc-[0-9a-f]{8}|-\d+-[a-z0-9]{5}\b|[0-9a-f]{8}-[0-9a-f]{4}-")
WHAT_TO_DO = re.compile(r"\b(create|put|set|add|raise|delete|correct|write|check|change|free)\b")


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lifecycle_docs", ROOT / "tools" / "lifecycle_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((GUIDES / "lifecycle-cases.json").read_text())
    return found


def test_the_page_is_generated_from_the_cases() -> None:
    assert (GUIDES / "troubleshooting.md").read_text() == tool().page(cases()), "run tools/lifecycle_docs.py"


@pytest.mark.parametrize("case", cases()["cases"], ids=lambda c: c["case"])
def test_a_case_has_a_reason_of_the_table_and_says_what_to_do(case: dict[str, Any]) -> None:
    condition, _, reason = case["condition"].partition("/")
    assert condition in ("Blocked", "Failed", "Running", "Suspended")
    assert reason in MEANING
    assert WHAT_TO_DO.search(case["message"])
    assert not NOT_NORMAL.search(case["message"])
    # Only what is final needs a new object.
    assert case["goesOn"] or condition in ("Failed", "Running")


def test_the_cases_that_a_user_meets_first_are_there() -> None:
    reasons = {case["condition"].partition("/")[2] for case in cases()["cases"]}
    wanted = {Reason.SECRET_MISSING, Reason.IMAGE_PULL, Reason.UNSCHEDULABLE, Reason.QUOTA, Reason.NAME_CONFLICT,
              Reason.INPUT_NOT_READY, Reason.SUSPENDED, Reason.CREDENTIALS, Reason.CORPUS_REFUSED, Reason.INVALID_SPEC,
              Reason.WORKER_FAILED, Reason.BACKOFF, Reason.OUT_OF_MEMORY, Reason.DEADLINE}  # fmt: skip
    assert wanted <= reasons


def test_a_refused_edit_names_its_field_and_the_way_out() -> None:
    refusals = cases()["refusals"]
    assert len(refusals) >= 5
    for refusal in refusals:
        assert refusal["message"].startswith(f"{refusal['case']} ")
        assert "; " in refusal["message"]


def test_both_pages_are_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for name in ("lifecycle", "troubleshooting"):
        assert f"user-guides/{name}.md" in text


def test_reasons_named_by_hand_exist() -> None:
    text = (GUIDES / "lifecycle.md").read_text()
    named = re.findall(r"`(?:Blocked|Failed|Running|Suspended|Complete)/([A-Za-z]+)`", text)
    assert named
    assert set(named) <= set(MEANING)


def test_the_examples_by_hand_are_yaml() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", (GUIDES / "lifecycle.md").read_text(), re.DOTALL):
        assert yaml.safe_load(block)
