"""Every rule of the operator and every fault that it must survive has a test with its number in the name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_DEFINED = re.compile(r"^\s*def (test_\w+)\(", re.MULTILINE)
_NUMBERED = re.compile(r"(?:^test|_)_?([rf]\d+)(?=_)")

STORAGE_FAULTS = {
    "503 SlowDown": ("integration/storage/test_s3_errors.py", "test_a_busy_server_is_retried_and_then_retryable"),
    "403 expired token": ("integration/storage/test_s3_errors.py", "test_other_answers_say_what_to_do"),
    "403 everywhere": (
        "integration/storage/test_s3_errors.py",
        "test_refused_credentials_are_a_config_error_in_every_call",
    ),
    "answer lost": ("integration/storage/test_s3_errors.py", "test_both_answers_to_a_lost_create"),
    "stream cut": ("integration/storage/test_s3_errors.py", "test_a_stream_that_is_cut_resumes_where_it_broke"),
    "two commits": ("integration/storage/test_ledger_on_s3.py", "test_two_commits_of_one_shard_leave_one"),
    "kill of an inspection": ("integration/corpus/test_corpus_kills.py", "test_every_kill_leads_to_the_same_bytes"),
    "finished twice": ("integration/corpus/test_corpus_kills.py", "test_finalize_repeats_its_result"),
    "kill of a synthesis": ("integration/synthesis/test_kills.py", "test_killed_before_and_after_every_write"),
}
"""F13 is the storage's and the workers': where each part of it is tested, under names of their own."""


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


@pytest.mark.parametrize("fault", [f"f{n}" for n in range(1, 14)])
def test_every_fault_has_a_test(found: set[str], fault: str) -> None:
    assert fault in found


@pytest.mark.parametrize("fault", STORAGE_FAULTS)
def test_f13_faults_of_storage_have_tests(fault: str) -> None:
    path, name = STORAGE_FAULTS[fault]
    assert name in names(TESTS / path)


def test_numbers_are_read_from_names() -> None:
    assert numbers("test_r1_a_and_r22_b") == {"r1", "r22"}
    assert numbers("test_f6_f7_never") == {"f6", "f7"}
    assert numbers("test_four_1_r") == set()
