"""Pods as JSON -> facts, and how often they are looked at."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

import pytest

from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK
from instructpt_operator.looker import EVENTS, PODS, PodLooker, fetch_progress
from instructpt_operator.pods import end_of, is_stuck, pod_facts, problem_of, recreated
from instructpt_operator.runtime.client import ApiError

FIGURES = {"done": 3, "total": 9, "unit": "shards", "counts": {"pairs": 5}, "rates": {"tokens_per_second": 10.0},
           "gauges": {}}  # fmt: skip


def pod(
    name: str = "p-0", phase: str = "Running", state: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    state = {"running": {"startedAt": "2026-01-01T00:00:10Z"}} if state is None else state
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": phase, "podIP": "10.0.0.1", "containerStatuses": [{"state": state}], **status},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(phase="Pending", state={"waiting": {"reason": reason, "message": message}})


def ended(code: int, message: str = "", phase: str = "Failed", **status: Any) -> dict[str, Any]:
    return pod(phase=phase, state={"terminated": {"exitCode": code, "reason": "Error", "message": message}}, **status)


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
    assert pod_facts([pod()], [event]).problems == ()


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


def test_f8_a_pod_made_again_after_its_peer_ran_was_taken_away() -> None:
    late = pod("p-1")
    late["metadata"]["creationTimestamp"] = "2026-01-01T00:05:00Z"
    assert recreated([pod("p-0"), late]) == ("p-1",)
    assert recreated([pod("p-0"), pod("p-1")]) == ()
    assert recreated([late]) == ()


class Client:
    """Answers lists and counts them."""

    def __init__(self, pods: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> None:
        self.pods, self.events, self.asked = pods, events or [], []
        self.fails = False

    def list(self, type_: Any, namespace: str, **query: Any) -> list[dict[str, Any]]:
        self.asked.append((type_, query))
        if self.fails:
            raise ApiError(503, "ServiceUnavailable")
        return self.pods if type_ is PODS else self.events


def job(**status: Any) -> dict[str, Any]:
    labels = {
        LABEL_KIND: "SynthesisJob",
        LABEL_NAME: "s",
        LABEL_STEP: "synthesis",
        LABEL_TASK: "work",
        LABEL_ATTEMPT: "1",
    }
    meta = {"name": "s-synthesis-1", "namespace": "lab", "uid": "u-1", "resourceVersion": "7", "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {}, "status": status}


def looker(client: Client, now: list[float], **kwargs: Any) -> PodLooker:
    return PodLooker(client, clock=lambda: now[0], **kwargs)  # type: ignore[arg-type]


def test_r5_pods_are_listed_at_most_every_ten_seconds() -> None:
    client, now = Client([pod()]), [0.0]
    eyes = looker(client, now)
    for second in range(31):
        now[0] = float(second)
        facts = eyes.facts(job(active=1))
        assert facts is not None
        assert facts.running == 1
    assert len(client.asked) == 4
    query = client.asked[0][1]
    assert query["limit"] == 20
    assert "instructpt.dev/name=s,instructpt.dev/step=synthesis" in query["label_selector"]


def test_r5_a_child_that_ended_is_looked_at_once() -> None:
    client, now = Client([ended(1)]), [0.0]
    eyes = looker(client, now)
    done = job(conditions=[{"type": "Failed", "status": "True"}])
    for second in range(0, 100, 20):
        now[0] = float(second)
        facts = eyes.facts(done)
        assert facts is not None
        assert facts.ends[0].exit_code == 1
    assert len(client.asked) == 1


def test_events_are_read_only_of_what_is_stuck() -> None:
    client = Client([waiting("ContainerCreating")])
    looker(client, [0.0]).facts(job(active=1))
    assert [type_ for type_, _ in client.asked] == [PODS, EVENTS]
    assert client.asked[1][1]["field_selector"] == "involvedObject.name=p-0,type=Warning"
    client = Client([])
    looker(client, [0.0]).facts(job())
    assert client.asked[1][1]["field_selector"] == "involvedObject.name=s-synthesis-1,type=Warning"


def test_an_api_server_that_is_away_leaves_what_was_seen() -> None:
    client, now = Client([pod()]), [0.0]
    eyes = looker(client, now)
    assert eyes.facts(job(active=1)) is not None
    client.fails, now[0] = True, 60.0
    assert eyes.facts(job(active=1)).running == 1  # type: ignore[union-attr]
    assert eyes.facts(job(conditions=[{"type": "Failed", "status": "True"}])) is None


def test_progress_of_a_sample_is_scaled() -> None:
    client = Client([pod(f"p-{i}") for i in range(4)])
    answers = iter([FIGURES, None, FIGURES, None])
    facts = looker(client, [0.0], fetch=lambda address: next(answers)).facts(job(active=4))
    assert facts is not None
    assert facts.figures is not None
    assert (facts.figures["done"], facts.figures["total"]) == (3, 9)
    assert facts.figures["rates"]["tokens_per_second"] == 40.0


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (json.dumps(FIGURES), True),
        (json.dumps({**FIGURES, "extra": 1}), True),
        ("{", False),
        ("[]", False),
        (json.dumps({**FIGURES, "done": -1}), False),
        (json.dumps({**FIGURES, "gauges": {"loss": "x"}}), False),
        (json.dumps({**FIGURES, "note": "x" * 70_000}), False),
    ],
)
def test_an_answer_of_a_pod_is_checked(body: str, good: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        found = fetch_progress("127.0.0.1", port=server.server_address[1])
        thread.join(5)
    assert (found == FIGURES) if good else (found is None)


def test_a_pod_that_does_not_answer_is_no_error() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    assert fetch_progress("127.0.0.1", port=port) is None
