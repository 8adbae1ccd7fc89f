from __future__ import annotations

import pytest
from figures import told

from instructpt.api.v1alpha1 import InstructionPretraining
from instructpt.api.v1alpha1.instructionpretraining import InstructionPretrainingStatus
from instructpt.plan import Plan, plan_resource
from instructpt.plan.status import Observation, StageObservation, judge
from tests.unit.plan.test_pipeline import VERSION, drive, quickstart

FIGURES = told(3, 12, "shards", per_second=0.5)


def begun(resource: InstructionPretraining) -> Plan:
    return plan_resource(resource, {}, code_version=VERSION)


def test_nothing_started_is_pending() -> None:
    judged = judge(quickstart(), begun(quickstart()), Observation(stages={}, active=False))
    assert judged.phase == "Pending"
    assert judged.conditions[0].reason == "Pending"


def test_a_running_stage_shows_its_shards_and_eta() -> None:
    seen = Observation(stages={"corpus": StageObservation(running=True, attempts=1, figures=FIGURES)}, active=True)
    judged = judge(quickstart(), begun(quickstart()), seen)
    assert judged.phase == "Inspecting"
    assert judged.shards is not None
    assert (judged.shards.succeeded, judged.shards.total) == (3, 12)
    assert judged.progress is not None
    assert judged.progress.eta_seconds == 18


def test_a_failed_stage_is_failed_and_says_why() -> None:
    seen = Observation(
        stages={"corpus": StageObservation(attempts=4, error="bucket gone", is_config=True)}, active=False
    )
    judged = judge(quickstart(), begun(quickstart()), seen)
    assert judged.phase == "Failed"
    failed = judged.conditions[0]
    assert (failed.type, failed.status, failed.reason) == ("Failed", "True", "InvalidSpec")
    assert "bucket gone" in failed.message


def test_a_retried_stage_is_not_failed() -> None:
    seen = Observation(stages={"corpus": StageObservation(running=True, attempts=2, error="killed")}, active=True)
    assert judge(quickstart(), begun(quickstart()), seen).phase == "Inspecting"


def test_everything_done_is_complete_with_the_last_output() -> None:
    _, plan = drive(quickstart())
    judged = judge(quickstart(), plan, Observation(stages={"corpus": StageObservation(attempts=1)}, active=False))
    assert judged.phase == "Complete"
    assert judged.output is not None
    assert judged.output.uri.endswith("/report")


def test_a_left_run_is_stopped() -> None:
    seen = Observation(stages={"corpus": StageObservation(attempts=1)}, active=False)
    assert judge(quickstart(), begun(quickstart()), seen).phase == "Stopped"


@pytest.mark.parametrize("active", [True, False])
def test_a_status_fits_the_api_model(active: bool) -> None:
    judged = judge(quickstart(), begun(quickstart()), Observation(stages={}, active=active))
    status = InstructionPretrainingStatus.model_validate(judged.to_wire())
    assert (status.phase, status.gate) == (judged.phase, "Pending")
