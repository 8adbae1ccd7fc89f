"""Pods and their events as JSON -> facts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from podmaker import FIGURES, ended, pod, waiting

from instructpt_operator.pods import end_of, is_stuck, pod_facts, problem_of, recreated


def test_a_running_pod_counts_as_running() -> None:
    facts = pod_facts([pod(), waiting("ContainerCreating")], figures=FIGURES)
    assert (facts.running, facts.listed, facts.problems, facts.ends) == (1, 2, (), ())
    assert facts.figures == FIGURES


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"])
def test_f9_a_waiting_reason_is_a_problem(reason: str) -> None:
    found = problem_of(waiting(reason, "why"))
    assert found is not None
    assert (found.pod, found.reason, found.message) == ("p-0", reason, "why")


def test_f9_a_problem_of_an_init_container_is_one() -> None:
    stuck = waiting("PodInitializing")
    stuck["status"]["initContainerStatuses"] = [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]
    assert problem_of(stuck).reason == "ErrImagePull"  # type: ignore[union-attr]


def worker_of_a_gang(init: dict[str, Any], phase: str = "Pending") -> dict[str, Any]:
    """A pod with the init container that the training operator adds, in a state; its own container waits for that."""
    made = pod("t-worker-0", phase=phase, state={"waiting": {"reason": "PodInitializing"}})
    made["status"]["containerStatuses"][0]["name"] = "pytorch"
    made["status"]["initContainerStatuses"] = [{"name": "init-pytorch", "state": init}]
    return made


def test_f9_an_init_container_that_waits_for_the_master_is_no_problem() -> None:
    waits = worker_of_a_gang({"running": {"startedAt": "2026-01-01T00:00:05Z"}})
    assert problem_of(waits) is None
    assert not is_stuck(waits), "its events tell nothing of why the master does not start"


def test_f9_what_others_add_to_a_pod_hides_no_problem_of_its_own() -> None:
    foreign = worker_of_a_gang({"waiting": {"reason": "ErrImagePull", "message": "alpine"}})
    own = waiting("CreateContainerConfigError", 'secret "hub" not found')
    own["status"]["containerStatuses"][0]["name"] = "pytorch"
    found = pod_facts([foreign, own]).problems
    assert [(p.container, p.reason) for p in found] == [
        ("pytorch", "CreateContainerConfigError"),
        ("init-pytorch", "ErrImagePull"),
    ]


def test_f9_one_pod_of_a_gang_that_runs_does_not_hide_why_another_does_not_start() -> None:
    event = {"reason": "FailedMount", "message": 'secret "s3" not found', "involvedObject": {"name": "w-0"}}
    refused = {"reason": "FailedCreatePod", "message": "forbidden", "involvedObject": {"name": "t-train-1"}}
    for told, name in ((event, "w-0"), (refused, "t-train-1")):
        assert [p.pod for p in pod_facts([pod("m-0")], [told]).problems] == [name]


def test_an_init_container_that_gave_up_is_told_of() -> None:
    gave_up = worker_of_a_gang({"terminated": {"exitCode": 1, "reason": "Error"}}, phase="Failed")
    found = end_of(gave_up)
    assert found is not None
    assert (found.exit_code, found.gave_up) == (None, "init-pytorch")
    facts = pod_facts([gave_up])
    assert (facts.started, pod_facts([gave_up, pod("m-0")]).started) == (False, True)


def test_f9_unschedulable_is_a_problem_and_gated_is_not() -> None:
    def unscheduled(reason: str) -> dict[str, Any]:
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": "0/1 nodes"}
        return {"metadata": {"name": "p-0"}, "status": {"phase": "Pending", "conditions": [condition]}}

    assert problem_of(unscheduled("Unschedulable")).message == "0/1 nodes"  # type: ignore[union-attr]
    assert problem_of(unscheduled("SchedulingGated")) is None


def test_a_pod_that_waits_without_a_word_is_stuck_and_its_events_tell() -> None:
    silent = waiting("ContainerCreating")
    assert is_stuck(silent)
    assert not is_stuck(waiting("ImagePullBackOff"))
    event = {"reason": "FailedMount", "message": 'secret "s3" not found', "involvedObject": {"name": "p-0"}}
    other = {"reason": "Pulled", "message": "fine", "involvedObject": {"name": "p-0"}}
    facts = pod_facts([silent], [other, event])
    assert [(p.pod, p.reason) for p in facts.problems] == [("p-0", "FailedMount")]


def test_of_several_events_the_newest_counts() -> None:
    def event(at: str, message: str, **more: Any) -> dict[str, Any]:
        about = {"involvedObject": {"name": "s-synthesis-1"}, "reason": "FailedCreate", "message": message}
        return {"metadata": {"name": message}, "lastTimestamp": at, **about, **more}

    old = event("2026-01-01T00:00:00Z", "exceeded quota")
    new = event("2026-01-01T00:01:00Z", "no service account")
    again = event(None, "exceeded quota again", series={"lastObservedTime": "2026-01-01T00:02:00.123456Z"})  # type: ignore[arg-type]
    assert [p.message for p in pod_facts([], [old, new]).problems] == ["no service account", "exceeded quota"]
    assert pod_facts([], [old, again, new]).problems[0].message == "exceeded quota again"


def test_how_a_pod_ended() -> None:
    error = {"error": {"type": "ConfigError", "message": "no such bucket"}}
    end = end_of(ended(43, json.dumps(error)))
    assert end is not None
    assert (end.exit_code, end.message, end.disrupted) == (43, error, False)
    assert end_of(pod()) is None


@pytest.mark.parametrize("text", ["", "not json", "[1]"])
def test_a_message_that_is_none_is_none(text: str) -> None:
    assert end_of(ended(1, text)).message is None  # type: ignore[union-attr]


def test_f8_a_disrupted_pod_is_known_by_its_condition() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    assert end_of(ended(143, conditions=[condition])).disrupted  # type: ignore[union-attr]
    evicted = {"metadata": {"name": "p-0"}, "status": {"phase": "Failed", "reason": "Evicted"}}
    assert (end_of(evicted).exit_code, end_of(evicted).reason) == (None, "Evicted")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("finished", "expected"), [("2026-01-01T00:06:59Z", False), ("2026-01-01T00:07:00Z", True), (None, True)]
)
def test_f8_a_pod_that_ended_after_it_was_deleted_was_told_to_leave(finished: str | None, expected: bool) -> None:
    """Deletion was asked for at 00:07, with a grace period of a minute."""
    gone = ended(1)
    gone["metadata"] |= {"deletionTimestamp": "2026-01-01T00:08:00Z", "deletionGracePeriodSeconds": 60}
    gone["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = finished
    found = end_of(gone)
    assert found is not None
    assert found.told_to_leave is expected
    assert not end_of(ended(1)).told_to_leave  # type: ignore[union-attr]


def test_f8_a_pod_made_again_after_its_peer_ran_was_taken_away() -> None:
    late = pod("p-1")
    late["metadata"]["creationTimestamp"] = "2026-01-01T00:05:00Z"
    assert recreated([pod("p-0"), late]) == ("p-1",)
    assert recreated([pod("p-0"), pod("p-1")]) == ()
    assert recreated([late]) == ()


NOW = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)


def leaving(until: str, **changes: Any) -> dict[str, Any]:
    """A pod that is being deleted; its timestamp has its grace period in."""
    made = pod(**changes)
    made["metadata"]["deletionTimestamp"] = until
    made["spec"] = {"nodeName": "node-7"}
    return made


def test_f8_a_pod_that_outstays_its_grace_period_is_told_of_with_its_node() -> None:
    late, soon = leaving("2026-01-01T00:08:00Z"), leaving("2026-01-01T00:09:30Z")
    assert pod_facts([late], now=NOW).leaving == ("p-0 on node node-7",)
    assert pod_facts([soon], now=NOW).leaving == ()


def test_f11_a_pod_that_has_ended_and_cannot_go_is_stranded() -> None:
    held = leaving("2026-01-01T00:08:00Z", phase="Failed")
    held["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"]
    assert pod_facts([held], now=NOW).stranded
    assert pod_facts([held], now=NOW).leaving == ()
    del held["metadata"]["finalizers"]
    assert not pod_facts([held], now=NOW).stranded
