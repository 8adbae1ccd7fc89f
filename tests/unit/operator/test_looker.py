"""How often pods are looked at, and what is kept of a look."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from podmaker import FIGURES, OWNER, ended, pod, waiting

from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK
from instructpt_operator.looker import EVENTS, PODS, PodLooker
from instructpt_operator.runtime.client import ApiError


class Client:
    """Answers lists and counts them."""

    def __init__(self, pods: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> None:
        self.pods, self.events = pods, events or []
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.fails = False

    def list(self, type_: Any, namespace: str, **query: Any) -> list[dict[str, Any]]:
        self.asked.append((type_, query))
        if self.fails:
            raise ApiError(503, "ServiceUnavailable")
        if type_ is EVENTS:
            return self.events
        wanted = {None: lambda phase: True, "status.phase=Failed": lambda phase: phase == "Failed"}.get(
            query.get("field_selector"), lambda phase: phase not in ("Succeeded", "Failed")
        )
        return [p for p in self.pods if wanted(p["status"]["phase"])][: query["limit"]]


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


def looker(client: Client, seconds: list[float], **kwargs: Any) -> PodLooker:
    """Looks are taken at once, where they are asked for."""
    kwargs.setdefault("run", lambda look: look())
    return PodLooker(client, clock=lambda: seconds[0], **kwargs)  # type: ignore[arg-type]


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
    assert client.asked[-1][1]["field_selector"] == "involvedObject.name=s-synthesis-1,type=Warning"


def test_events_of_a_gang_are_read_where_pods_of_it_are_missing() -> None:
    """The training operator says why it could not create a pod, in an event about the whole."""
    replicas = {"Master": {"replicas": 1}, "Worker": {"replicas": 1}}
    whole = {**gang(), "spec": {"pytorchReplicaSpecs": replicas}}
    client = Client([pod("m-0")])
    looker(client, [0.0]).facts(whole)
    assert client.asked[1][1]["field_selector"] == "involvedObject.name=s-synthesis-1,type=Warning"
    client = Client([pod("m-0"), pod("w-0")])
    looker(client, [0.0]).facts(whole)
    assert [type_ for type_, _ in client.asked] == [PODS]


def test_what_was_in_the_way_is_remembered_when_a_child_ends() -> None:
    """Its pods that did not start are removed with its end."""
    client, now = Client([waiting("ErrImagePull", "not found")]), [0.0]
    eyes = looker(client, now)
    assert not eyes.facts(gang()).started  # type: ignore[union-attr]
    client.pods = []
    facts = eyes.facts(gang(conditions=[{"type": "Failed", "status": "True"}]))
    assert facts is not None
    assert ([p.reason for p in facts.problems], facts.started) == (["ErrImagePull"], False)


def test_r5_the_time_of_a_look_is_that_of_its_beginning() -> None:
    """Else a look that takes a second would make the next one miss the visit that is due after ten."""
    client, now = Client([waiting("ContainerCreating")]), [0.0]
    listed = client.list

    def slow(*args: Any, **query: Any) -> list[dict[str, Any]]:
        now[0] += 0.5
        return listed(*args, **query)

    client.list = slow  # type: ignore[method-assign]
    eyes = looker(client, now)
    eyes.facts(job(active=1))
    looks = len(client.asked)
    now[0] = 10.0
    eyes.facts(job(active=1))
    assert len(client.asked) == 2 * looks


def test_it_says_when_the_next_look_is_due() -> None:
    client, now = Client([pod()]), [0.0]
    eyes = looker(client, now, interval_seconds=30.0)
    assert eyes.due_in("u-1") is None, "nobody has looked yet"
    eyes.facts(job(active=1))
    now[0] = 8.0
    assert eyes.due_in("u-1") == 22.0
    client.pods, now[0] = [waiting("ContainerCreating")], 30.0
    eyes.facts(job(active=1))
    assert eyes.due_in("u-1") == 10.0, "what does not start is looked at sooner"
    client.fails, now[0] = True, 45.0
    eyes.facts(job(active=1))
    assert eyes.due_in("u-1") == 1.0, "a look that failed is tried again, but not at once"
    client.fails = False
    eyes.facts(job(conditions=[{"type": "Complete", "status": "True"}]))
    assert eyes.due_in("u-1") is None


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


def gang(**status: Any) -> dict[str, Any]:
    made = job()
    return {**made, "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "status": status}


def test_f8_pods_that_failed_do_not_hide_those_that_run() -> None:
    dead = [ended(137) for _ in range(25)]
    client = Client([*dead, *(pod(f"q-{n}") for n in range(16))])
    facts = looker(client, [0.0], fetch=lambda address: FIGURES).facts(job(active=16, ready=16, failed=25))
    assert facts is not None
    assert (facts.running, len(facts.ends)) == (16, 20)
    assert facts.figures is not None
    assert facts.figures["rates"]["tokens_per_second"] == 160.0


def test_f11_pods_that_failed_are_seen_although_their_job_has_not_counted_them() -> None:
    """As in a namespace that is being deleted: the Job counts a failed pod once it was replaced, which it never is."""
    dead = ended(1)
    dead["metadata"] |= {
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["batch.kubernetes.io/job-tracking"],
    }
    facts = looker(Client([dead]), [0.0]).facts(job(terminating=0, ready=0))
    assert facts is not None
    assert facts.stranded
    client = Client([pod()])
    looker(client, [0.0]).facts(job(active=1))
    assert len(client.asked) == 1, "a Job with active pods is asked about once"


def test_a_pod_of_a_former_object_of_the_same_name_is_not_ours() -> None:
    former = ended(43)
    former["metadata"]["ownerReferences"] = [{**OWNER, "uid": "another"}]
    facts = looker(Client([former, pod("p-1")]), [0.0]).facts(job(conditions=[{"type": "Failed", "status": "True"}]))
    assert facts is not None
    assert (facts.ends, facts.listed) == ((), 1)


def test_r11_a_pod_of_a_gang_that_is_another_one_was_replaced() -> None:
    client, now = Client([pod("m-0"), pod("w-0")]), [0.0]
    eyes = looker(client, now)
    assert eyes.facts(gang()).replaced == ()  # type: ignore[union-attr]
    other = waiting("ContainerCreating")
    other["metadata"] = {**other["metadata"], "name": "w-0", "uid": "another"}
    client.pods, now[0] = [pod("m-0"), other], 10.0
    assert eyes.facts(gang()).replaced == ("w-0",)  # type: ignore[union-attr]
    now[0] = 20.0
    assert eyes.facts(gang()).replaced == ("w-0",), "it is so for good"  # type: ignore[union-attr]


def test_what_workers_told_last_is_kept_with_its_time_while_none_answers() -> None:
    client, now, answers = Client([pod()]), [0.0], [FIGURES, None]
    at = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (0, 10)]
    eyes = looker(client, now, fetch=lambda address: answers[int(now[0]) // 10], now=lambda: at[int(now[0]) // 10])
    for now[0] in (0.0, 10.0):
        facts = eyes.facts(job(active=1))
        assert facts is not None
        assert facts.figures is not None
        assert (facts.figures["done"], facts.figures_at) == (3, at[0])


def test_the_rates_of_a_gang_are_those_of_the_rank_that_tells() -> None:
    silent = {**FIGURES, "done": 0, "total": 0, "unit": "", "rates": {}, "counts": {}}
    answers = iter([silent, {**FIGURES, "gauges": {"loss": 2.0}}])
    client = Client([pod("m-0"), pod("w-0")])
    facts = looker(client, [0.0], fetch=lambda address: next(answers)).facts(gang())
    assert facts is not None
    assert facts.figures is not None
    assert facts.figures["rates"] == {"tokens_per_second": 10.0}
    assert facts.figures["gauges"] == {"loss": 2.0}


def test_a_visit_waits_for_no_look_and_is_told_of_it() -> None:
    looks: list[Callable[[], None]] = []
    told: list[str] = []
    client, now = Client([pod()]), [0.0]
    eyes = looker(client, now, run=looks.append)
    eyes.subscribe(lambda child: told.append(child["metadata"]["name"]))
    child = job(active=1)
    assert eyes.facts(child) is None
    assert eyes.facts(child) is None
    assert len(looks) == 1, "one look at a time"
    looks.pop()()
    assert told == ["s-synthesis-1"]
    assert eyes.facts(child).running == 1  # type: ignore[union-attr]
    now[0] = 10.0
    assert eyes.facts(child).running == 1, "the last look holds while the next is taken"  # type: ignore[union-attr]
    looks.pop()()
    assert told == ["s-synthesis-1"], "nothing new is no news"


@pytest.mark.parametrize("by", ["forget", "retain"])
def test_a_look_that_outlives_its_child_is_dropped(by: str) -> None:
    client = Client([pod()])
    eyes = looker(client, [0.0])
    listed = client.list

    def gone_meanwhile(type_: Any, namespace: str, **query: Any) -> list[dict[str, Any]]:
        if by == "forget":
            eyes.forget("u-1")
        else:
            eyes.retain({"u-2"})
        return listed(type_, namespace, **query)

    client.list = gone_meanwhile  # type: ignore[method-assign]
    assert eyes.facts(job(active=1)) is None
    assert (eyes._looks, eyes._busy) == ({}, set())


def test_f10_a_gang_that_a_queue_let_go_again_was_not_replaced() -> None:
    """Kueue suspends a running PyTorchJob and admits it later: its pods have the names of those that it took away."""

    def said(status: str, at: str) -> dict[str, Any]:
        return {"conditions": [{"type": "Suspended", "status": status, "lastTransitionTime": at}]}

    client, now = Client([pod("m-0"), pod("w-0")]), [0.0]
    eyes = looker(client, now)
    assert eyes.facts(gang()).running == 2  # type: ignore[union-attr]
    held = {**gang(**said("True", "2026-01-01T00:01:00Z")), "spec": {"runPolicy": {"suspend": True}}}
    assert eyes.facts(held) is None
    again = [pod(name) for name in ("m-0", "w-0")]
    for one in again:
        one["metadata"]["uid"] += "-again"
    client.pods, now[0] = again, 10.0
    resumed = gang(**said("False", "2026-01-01T00:02:00Z"))
    assert eyes.facts(resumed).replaced == ()  # type: ignore[union-attr]
    client.pods, now[0] = [pod("m-0"), again[1]], 20.0
    assert eyes.facts(resumed).replaced == ("m-0",), "since then they count again"  # type: ignore[union-attr]


def test_a_look_whose_child_is_gone_is_not_taken() -> None:
    looks: list[Callable[[], None]] = []
    client = Client([pod()])
    eyes = looker(client, [0.0], run=looks.append)
    eyes.facts(job(active=1))
    eyes.forget("u-1")
    looks.pop()()
    assert client.asked == []
    assert eyes._looks == {}
