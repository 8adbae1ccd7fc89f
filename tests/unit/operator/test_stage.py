"""One stage through its attempts: what is counted, what is remembered, what brings it back on its feet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import operators
import pytest
from figures import told
from simulation import Cluster, Ends, Key, Runs, Script, Stuck

from instructpt.cluster.launchers.base import WorkState
from instructpt.plan.naming import ANNOTATION_INPUTS, LABEL_ATTEMPT, LABEL_TASK, TASK_FINALIZE, TASK_WORK
from instructpt_operator.observed import PodEnd, PodFacts
from instructpt_operator.reconcilers.failures import judge_failure

TRN, SYN = operators.training("t"), operators.synthesis("s")
PEER_LOST = {"error": {"type": "PeerLostError", "message": "node 1 did not meet the others at t:23456"}}
FAILED = WorkState(phase="Failed", reason="PyTorchJobFailed")


def start(obj: Mapping[str, Any], script: Script, **spec: Any) -> tuple[Cluster, Key]:
    cluster = Cluster(script=script)
    return cluster, cluster.apply(obj["kind"], obj["metadata"]["name"], {**obj["spec"], **spec})


def train(act: Any) -> Script:
    """The workers of the training do so; everything else ends well."""

    def script(step: str, task: str, attempt: int) -> Any:
        if (step, task) != ("train", TASK_WORK):
            return Ends()
        return act(attempt) if callable(act) else act

    return script


def stage_of(cluster: Cluster, key: Key, step: str = "train") -> dict[str, Any]:
    return next(s for s in cluster.status(key)["stages"] if s["step"] == step)


class TestInterruptions:
    """A gang that loses pods: whose fault it is, by what they left."""

    def facts(self, *ends: PodEnd, listed: int = 2, recreated: tuple[str, ...] = ()) -> PodFacts:
        return PodFacts(listed=listed, ends=ends, recreated=recreated)

    def lost(self, pod: str = "m-0") -> PodEnd:
        return PodEnd(pod=pod, exit_code=1, message=PEER_LOST)

    def test_a_pod_that_is_gone_is_only_presumed_to_be_taken_away(self) -> None:
        failure = judge_failure(FAILED, self.facts(self.lost(), listed=1), expected=2)
        assert (failure.counted, failure.presumed) == (False, True)
        assert "(1 of 2 gone)" in failure.message
        assert "did not meet the others" in failure.message, "what the peers say is kept"

    @pytest.mark.parametrize("proof", ["disrupted", "recreated", "all told to stop"])
    def test_a_proof_is_a_proof(self, proof: str) -> None:
        facts = {
            "disrupted": self.facts(self.lost(), PodEnd(pod="w-0", exit_code=137, disrupted=True)),
            "recreated": self.facts(self.lost(), recreated=("w-0",)),
            "all told to stop": self.facts(PodEnd(pod="m-0", exit_code=75), PodEnd(pod="w-0", exit_code=75)),
        }[proof]
        failure = judge_failure(FAILED, facts, expected=2)
        assert (failure.counted, failure.presumed) == (False, False)

    def test_all_are_there_and_lost_one_another(self) -> None:
        failure = judge_failure(FAILED, self.facts(self.lost("m-0"), self.lost("w-0")), expected=2)
        assert failure.counted

    def test_a_cause_outweighs_what_its_peers_say(self) -> None:
        cause = PodEnd(pod="w-0", exit_code=1, message={"error": {"type": "TrainingError", "message": "loss is NaN"}})
        failure = judge_failure(FAILED, self.facts(self.lost(), cause), expected=2)
        assert failure.counted
        assert "loss is NaN" in failure.message

    def test_a_gang_that_never_meets_is_counted_from_the_second_time(self) -> None:
        cluster, key = start(TRN, train(Ends(code=1, message=PEER_LOST)), backoffLimit=2)
        facts = cluster._facts
        cluster._facts = lambda obj: _one_gone(facts(obj), obj)  # type: ignore[method-assign]
        cluster.settle(rounds=400)
        failed = cluster.condition(key, "Failed")
        assert (failed["status"], failed["reason"]) == ("True", "BackoffLimitExceeded")
        assert "no step was made since the last interruption" in failed["message"]
        assert (stage_of(cluster, key)["attempt"], stage_of(cluster, key)["failures"]) == (4, 3)

    def test_a_gang_that_gets_further_each_time_is_not(self) -> None:
        def ends(attempt: int) -> Ends:
            return Ends() if attempt > 5 else Ends(code=1, message={**PEER_LOST, "done": 10 * attempt})

        cluster, key = start(TRN, train(ends), backoffLimit=0)
        facts = cluster._facts
        cluster._facts = lambda obj: _one_gone(facts(obj), obj)  # type: ignore[method-assign]
        cluster.settle(rounds=400)
        assert cluster.is_true(key, "Complete")
        stage = stage_of(cluster, key)
        assert (stage["attempt"], stage["failures"], stage["done"]) == (6, 0, 50)


def _one_gone(facts: PodFacts | None, obj: Mapping[str, Any]) -> PodFacts | None:
    """Of a PyTorchJob that failed only the first pod is left, as its clean-up leaves it."""
    if facts is None or obj["kind"] != "PyTorchJob" or not facts.ends or facts.ends[0].exit_code == 0:
        return facts
    return replace(facts, listed=0)


def test_r11_a_gang_with_a_pod_that_was_replaced_starts_again_as_a_whole() -> None:
    def act(attempt: int) -> Any:
        return Runs(told(12, 50, "steps"), replaced=("t-train-1-worker-0",)) if attempt == 1 else Ends()

    cluster, key = start(TRN, train(act), backoffLimit=0)
    cluster.settle()
    assert cluster.is_true(key, "Complete")
    assert [cluster.created[f"t-train-{n}"] for n in (1, 2, 3)] == [1, 1, 0]
    stage = stage_of(cluster, key)
    assert (stage["failures"], stage["done"], cluster.status(key)["restarts"]) == (0, 12, 1)


def test_the_clock_runs_from_the_first_child_although_no_visit_came_to_say_so() -> None:
    """The operator dies between the first Job and the status."""
    cluster, key = start(SYN, lambda *_: Runs(), activeDeadlineSeconds=60)
    act = cluster._act

    def dies(raw: dict[str, Any], outcome: Any) -> str | None:
        said = act(raw, replace(outcome, status=None))
        cluster._act = act  # type: ignore[method-assign]
        cluster.restart()
        return said

    cluster._act = dies  # type: ignore[method-assign]
    cluster.settle(rounds=2)
    assert ("Job", "s-synthesis-1") in cluster.objects
    made = cluster.objects["Job", "s-synthesis-1"]["metadata"]["creationTimestamp"]
    assert cluster.status(key)["startTime"] == made
    cluster.settle(rounds=60)
    assert cluster.condition(key, "Failed")["reason"] == "DeadlineExceeded"


def test_a_result_that_cannot_be_read_is_a_failure_and_not_asked_for_without_end() -> None:
    def script(step: str, task: str, attempt: int) -> Ends:
        return Ends(message={"new": "format"}) if task == TASK_FINALIZE else Ends()

    cluster, key = start(SYN, script, backoffLimit=1)
    cluster.settle(rounds=400)
    failed = cluster.condition(key, "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "bring images and operator to one version" in failed["message"]
    assert sum(cluster.created[f"s-synthesis-finalize-{n}"] for n in (1, 2, 3)) == 2


def test_workers_that_nobody_has_looked_at_yet_are_waited_for_before_their_end_is_judged() -> None:
    """The finishing task finds work missing before anybody knows that the workers were interrupted."""

    def script(step: str, task: str, attempt: int) -> Ends:
        if attempt > 1:
            return Ends()
        return Ends(result={"missing": 3}) if task == TASK_FINALIZE else Ends(code=137, disrupted=True)

    cluster, key = start(SYN, script, backoffLimit=0)
    facts, hidden = cluster._facts, [True]

    def late(obj: Mapping[str, Any]) -> PodFacts | None:
        is_work = obj["metadata"]["labels"].get(LABEL_TASK) == TASK_WORK
        finalized = ("Job", "s-synthesis-finalize-1") in cluster.objects
        return None if is_work and finalized and hidden[0] else facts(obj)

    cluster._facts = late  # type: ignore[method-assign]
    cluster.settle(rounds=12)
    assert not cluster.is_true(key, "Failed")
    hidden[0] = False
    cluster.settle()
    assert cluster.is_true(key, "Complete")
    assert stage_of(cluster, key, "synthesis")["failures"] == 0


def test_a_runspec_that_somebody_deleted_is_made_again() -> None:
    cluster, key = start(SYN, lambda *_: Runs())
    cluster.settle(rounds=4)
    config = next(k for k in cluster.objects if k[0] == "ConfigMap")
    before = cluster.objects.pop(config)
    cluster.script = lambda *_: Stuck("FailedMount", f'MountVolume.SetUp failed: configmap "{config[1]}" not found')
    cluster.settle(rounds=8)
    assert cluster.objects[config]["data"] == before["data"]


def test_f3_a_cache_that_is_attempts_behind_starts_none() -> None:
    """A new leader's cache shows the object as it was: without this it would create what is long gone."""
    cluster, key = start(TRN, train(lambda attempt: Ends(code=1) if attempt < 3 else Runs()))
    cluster.settle(rounds=3)
    old = json.loads(json.dumps(cluster.objects[key]))
    cluster.settle(rounds=60)
    assert stage_of(cluster, key)["attempt"] == 3
    before = dict(cluster.created)
    live = cluster.objects[key]
    fresh = cluster.observe
    cluster.observe = lambda *args, **named: replace(fresh(*args, **named), children={}, pods={})  # type: ignore[method-assign]
    decided = []
    act = cluster._act

    def see_old(raw: dict[str, Any], outcome: Any) -> str | None:
        decided.append(outcome)
        return act({**old, "status": old.get("status", {})}, outcome)

    cluster._act = see_old  # type: ignore[method-assign]
    cluster.objects[key] = old
    raw_visit = cluster.visit

    cluster._is_stale = lambda raw: raw.get("status") != live.get("status")  # type: ignore[method-assign]
    raw_visit(key)
    assert decided
    assert dict(cluster.created) == before


class TestSuspend:
    def test_it_is_suspended_once_nothing_runs_any_more(self) -> None:
        cluster, key = start(SYN, lambda *_: Runs())
        cluster.settle(rounds=4)
        cluster.held.add("s-synthesis-1")
        cluster.edit(key, suspend=True)
        cluster.settle(rounds=8)
        suspended = cluster.condition(key, "Suspended")
        assert (suspended["status"], suspended["reason"]) == ("False", "Suspending")
        assert cluster.status(key)["phase"] == "Suspending"
        cluster.held.clear()
        cluster.settle()
        assert cluster.is_true(key, "Suspended")
        assert cluster.status(key)["phase"] == "Suspended"
        said = [reason for _, reason, _ in cluster.events if reason.startswith("Suspend")]
        assert said == ["Suspending", "Suspended"]

    def test_an_object_that_waits_for_an_input_is_suspended_and_freezes_nothing(self) -> None:
        cluster = Cluster()
        ref = {"kind": "Corpus", "name": "c"}
        spec = {**operators.synthesis("s")["spec"], "input": {"ref": ref}, "suspend": True}
        key = cluster.apply("SynthesisJob", "s", spec)
        cluster.settle()
        assert cluster.is_true(key, "Suspended")
        corpus = cluster.apply("Corpus", "c", operators.corpus("c")["spec"])
        cluster.settle()
        assert cluster.is_true(corpus, "Complete")
        assert cluster.status(key)["inputs"] == []
        cluster.edit(key, suspend=False)
        cluster.settle()
        assert [i["name"] for i in cluster.status(key)["inputs"]] == ["c"]
        assert cluster.is_true(key, "Complete")

    def test_an_object_that_no_longer_plans_frees_what_it_holds(self) -> None:
        cluster, key = start(TRN, train(Runs()))
        cluster.settle(rounds=30)
        assert ("PyTorchJob", "t-train-1") in cluster.objects
        cluster.edit(key, suspend=True, sequenceLength=1_000_000)
        cluster.settle()
        assert [k for k in cluster.objects if k[0] in ("Job", "PyTorchJob")] == []
        assert cluster.is_true(key, "Suspended")

    def test_an_object_that_the_models_refuse_frees_what_it_holds(self) -> None:
        cluster, key = start(SYN, lambda *_: Runs())
        cluster.settle(rounds=4)
        cluster.edit(key, suspend=True, shots="many")
        cluster.settle(rounds=6)
        assert [k for k in cluster.objects if k[0] == "Job"] == []
        assert cluster.condition(key, "Blocked")["reason"] == "InvalidSpec"


def test_a_pipeline_hands_the_inputs_that_it_froze_to_its_children() -> None:
    """A ref that means something else by the time the child starts changes nothing."""
    cluster = Cluster(script=lambda step, *_: Runs() if step == "corpus" else Ends())
    tuned = operators.training("tuned")
    cluster.script = lambda *_: Ends()
    made = cluster.apply("TrainingJob", "tuned", tuned["spec"])
    cluster.settle()
    assert cluster.is_true(made, "Complete")
    pipeline = operators.pipeline("p")
    spec = json.loads(json.dumps(pipeline["spec"]))
    spec["training"]["init"] = {"ref": {"kind": "TrainingJob", "name": "tuned"}}
    cluster.script = lambda step, *_: Runs() if step == "corpus" else Ends()
    key = cluster.apply("InstructionPretraining", "p", spec)
    cluster.settle(rounds=10)
    frozen = cluster.status(key)["inputs"]
    cluster.objects[made]["status"]["output"]["digest"] = "sha256:" + "f" * 64
    cluster.script = lambda *_: Ends()
    cluster.settle()
    assert cluster.is_true(key, "Complete"), cluster.condition(key, "Blocked")
    arms = [o for k, o in cluster.objects.items() if k[0] == "TrainingJob" and k[1].startswith("p-train")]
    assert arms
    for arm in arms:
        assert json.loads(arm["metadata"]["annotations"][ANNOTATION_INPUTS]) == frozen
        assert next(i for i in arm["status"]["inputs"] if i["name"] == "tuned") in frozen


def test_f11_a_namespace_that_ends_gets_its_pods_released() -> None:
    cluster, key = start(SYN, lambda *_: Runs())
    cluster.settle(rounds=4)
    cluster.namespace_ends = True
    cluster.changed.add(key)
    cluster.settle()
    assert [k for k in cluster.objects if k[0] == "Job"] == []
    assert cluster.condition(key, "Blocked")["reason"] == "NamespaceTerminating"
    assert cluster.created["s-synthesis-2"] == 0


class TestLostPods:
    """A pod on a dead node is asked to leave, and does not; nothing takes its place (podReplacementPolicy: Failed)."""

    @pytest.mark.parametrize(("obj", "others"), [(SYN, 0), (TRN, 1)], ids=["last worker", "one of a gang"])
    def test_f8_what_cannot_go_on_says_so_and_goes_on_by_itself(self, obj: Mapping[str, Any], others: int) -> None:
        task = ("train" if obj is TRN else "synthesis", TASK_WORK)
        cluster, key = start(obj, lambda step, task_, _: Runs() if (step, task_) == task else Ends())
        cluster.settle(rounds=20)
        facts = cluster._facts

        def lost(child: Mapping[str, Any]) -> PodFacts | None:
            labels = child["metadata"]["labels"]
            if (labels["instructpt.dev/step"], labels[LABEL_TASK]) != task:
                return facts(child)
            return PodFacts(running=others, leaving=("w-0 on node gone",))

        cluster._facts = lost  # type: ignore[method-assign]
        cluster.restart()
        cluster.settle(rounds=5)
        blocked = cluster.condition(key, "Blocked")
        assert (blocked["status"], blocked["reason"]) == ("True", "PodsDoNotLeave")
        assert "w-0 on node gone" in blocked["message"]
        cluster._facts = facts  # type: ignore[method-assign]
        cluster.restart()
        cluster.settle(rounds=5)
        assert not cluster.is_true(key, "Blocked")
        assert cluster.status(key)["attempt"] == 1

    def test_f8_workers_that_are_left_do_its_part(self) -> None:
        cluster, key = start(SYN, lambda *_: Runs())
        cluster.settle(rounds=4)
        cluster._facts = lambda child: PodFacts(running=1, leaving=("w-0 on node gone",))  # type: ignore[method-assign]
        cluster.restart()
        cluster.settle(rounds=5)
        assert not cluster.is_true(key, "Blocked")
        assert cluster.is_true(key, "Running")


class TestQueue:
    def test_f10_what_waits_in_a_queue_is_queued_and_not_blocked(self) -> None:
        cluster, key = start(SYN, lambda *_: Runs(), queueName="gpus")
        cluster.settle(rounds=4)
        job = cluster.objects["Job", "s-synthesis-1"]
        job["spec"]["suspend"] = True
        cluster.restart()
        cluster.settle(rounds=4)
        assert cluster.status(key)["phase"] == "Queued"
        quota = cluster.condition(key, "QuotaReserved")
        assert (quota["status"], quota["reason"]) == ("False", "Queued")
        assert "queue gpus" in quota["message"]
        assert not cluster.is_true(key, "Blocked")
        job["spec"]["suspend"] = False
        job["status"] = {"active": 2, "ready": 2}
        cluster.restart()
        cluster.settle(rounds=4)
        assert cluster.is_true(key, "QuotaReserved")
        assert cluster.status(key)["workers"] == 2
        assert cluster.created["s-synthesis-1"] == 1


def test_a_label_that_tells_the_attempt_is_on_every_child() -> None:
    cluster, _ = start(SYN, lambda *_: Runs())
    cluster.settle(rounds=4)
    assert cluster.objects["Job", "s-synthesis-1"]["metadata"]["labels"][LABEL_ATTEMPT] == "1"
