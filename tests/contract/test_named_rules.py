"""Every rule of the operator and every fault that it must survive has a test with its number in the name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_DEFINED = re.compile(r"^\s*def (test_\w+)\(", re.MULTILINE)
_NUMBERED = re.compile(r"(?:^test|_)_?([rf]\d+)(?=_)")

STORAGE_FAULTS = {
    "integration/storage/test_s3_errors.py",
    "integration/storage/test_ledger_on_s3.py",
    "integration/corpus/test_corpus_faults.py",
    "integration/corpus/test_corpus_kills.py",
    "integration/synthesis/test_kills.py",
}
"""F13 is the storage's: whole files are about it."""


def numbers(name: str) -> set[str]:
    """``test_r1_a_and_r2_b`` -> ``{"r1", "r2"}``."""
    return set(_NUMBERED.findall(name))


def names(path: Path) -> list[str]:
    return _DEFINED.findall(path.read_text())


@pytest.fixture(scope="module")
def found() -> set[str]:
    return {number for path in TESTS.rglob("test_*.py") for name in names(path) for number in numbers(name)}


@pytest.mark.parametrize("rule", [f"r{n}" for n in range(1, 23)])
def test_every_rule_has_a_test(found: set[str], rule: str) -> None:
    assert rule in found


@pytest.mark.parametrize("fault", [f"f{n}" for n in range(1, 13)])
def test_every_fault_has_a_test(found: set[str], fault: str) -> None:
    assert fault in found


@pytest.mark.parametrize("path", sorted(STORAGE_FAULTS))
def test_faults_of_storage_have_tests(path: str) -> None:
    assert names(TESTS / path)


def test_numbers_are_read_from_names() -> None:
    assert numbers("test_r1_a_and_r22_b") == {"r1", "r22"}
    assert numbers("test_f6_f7_never") == {"f6", "f7"}
    assert numbers("test_four_1_r") == set()
