"""Conditions over time."""

from __future__ import annotations

from instructpt.api.base import Condition
from instructpt.api.reasons import Reason
from instructpt.plan.conditions import ALWAYS, merge_conditions

FIRST, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def holds(type_: str, status: str = "True", reason: Reason = Reason.RUNNING) -> Condition:
    return Condition(type=type_, status=status, reason=reason)  # type: ignore[arg-type]


def test_every_type_is_there_from_the_first_visit_on() -> None:
    merged = merge_conditions((holds("Running"),), (), now=FIRST, generation=1)
    assert tuple(c.type for c in merged) == ALWAYS
    assert [c.type for c in merged if c.status == "True"] == ["Running"]
    assert {(c.last_transition_time, c.observed_generation) for c in merged} == {(FIRST, 1)}


def test_a_time_moves_only_where_the_status_changes() -> None:
    before = merge_conditions((holds("Running"),), (), now=FIRST, generation=1)
    after = {c.type: c for c in merge_conditions((holds("Blocked"),), before, now=LATER, generation=2)}
    assert after["Blocked"].last_transition_time == after["Running"].last_transition_time == LATER
    assert after["Complete"].last_transition_time == FIRST
    assert after["Complete"].observed_generation == 2


def test_i3_an_end_stays_whatever_is_judged_later() -> None:
    for end in ("Complete", "Failed"):
        before = merge_conditions((holds(end),), (), now=FIRST, generation=1)
        assert merge_conditions((holds("Running"),), before, now=LATER, generation=2) == before
