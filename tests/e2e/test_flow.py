"""The main flow on the real cluster, in the order in which a user meets it; one test a step, each needs the last.

Images are built from this checkout, the chart is installed, one YAML file is applied. vLLM generates in pods, a master
and a worker train with DeepSpeed over gloo. On the way processes are killed as the kernel kills them: the leading
operator twice, a synthesizer in the middle of a micro-shard, a training worker; and everything is suspended once. Then
what lies on S3 is read back and counted.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import binaries, controlplane, images, processes, s3
from cluster.layout import S3_ENDPOINT, Layout, run
from flow import LAB, NAME, OPERATOR, SYSTEM, Flow, LedgerView, kill_leader, kill_mid_shard, operator_processes

from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus.document import Document, split_of
from instructpt.corpus.manifest import load_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
DOCUMENTS = 600
PIPELINE = ROOT / "tests" / "e2e" / "pipeline.yaml"
IDLE_SECONDS = 20.0
REPLICA = "training.kubeflow.org/replica-type"


@pytest.fixture(scope="module")
def flow(bed_layout: Layout) -> Iterator[Flow]:
    """One run for the module; credentials of the S3 server in the environment, as a user has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.credentials(bed_layout).items():
            if name != "AWS_ENDPOINT_URL":
                patch.setenv(name, value)
        if os.environ.get("INSTRUCTPT_E2E_GO_ON") != "1":
            _remove_leftovers(bed_layout)
        yield Flow(layout=bed_layout)


@pytest.fixture(autouse=True)
def in_order(flow: Flow, request: pytest.FixtureRequest) -> Iterator[None]:
    """A step without the one before it shows nothing."""
    if flow.failed:
        pytest.fail(f"{flow.failed} failed before")
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        flow.failed = request.node.name


def test_01_images_and_chart(flow: Flow) -> None:
    refs = images.load()
    helm = str(binaries.path("helm"))
    flow.layout.kubectl("create", "namespace", SYSTEM)
    flow.layout.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    run([helm, "--kubeconfig", str(flow.layout.kubeconfig), "install", "instructpt", str(ROOT / "helm" / "instructpt"),
         "-n", SYSTEM, "-f", "-", "--wait", "--timeout", "180s"], stdin=yaml.safe_dump(_values(refs)))  # fmt: skip
    deployment = flow.get("deployment", OPERATOR, namespace=SYSTEM)
    assert deployment["status"]["readyReplicas"] == 2


def test_02_a_corpus_and_credentials(flow: Flow) -> None:
    flow.layout.kubectl("create", "namespace", LAB)
    flow.layout.kubectl("label", "namespace", LAB, "pod-security.kubernetes.io/enforce=restricted")
    keys = s3.credentials(flow.layout)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s3"},
        "stringData": {k: keys[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
    }
    flow.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
    import boto3

    client = boto3.client("s3", endpoint_url=S3_ENDPOINT, region_name="us-east-1")
    for bucket in ("raw", "results"):
        client.create_bucket(Bucket=bucket)
    for number, part in enumerate(_documents()):
        client.put_object(Bucket="raw", Key=f"docs/part-{number}.jsonl", Body=part)
    assert client.list_objects_v2(Bucket="raw")["KeyCount"] == 3


def test_03_apply_one_file(flow: Flow) -> None:
    flow.marks["apply"] = time.monotonic()
    flow.kubectl("apply", "-f", "-", stdin=PIPELINE.read_text())
    flow.wait("first pod", lambda: flow.pods(kind="Corpus"), 30)
    flow.wait("the corpus is inspected", lambda: flow.phase("corp", f"{NAME}-corpus") == "Ready", 120)
    assert flow.object("corp", f"{NAME}-corpus")["status"]["counts"]["documents"] == DOCUMENTS


def test_04_the_operator_is_killed_a_first_time(flow: Flow) -> None:
    kill_leader(flow)
    flow.wait("the synthesizer trains", lambda: flow.pods(name=f"{NAME}-synthesizer", step="train", task="work"), 300)


def test_05_vllm_generates_and_a_worker_is_killed_mid_shard(flow: Flow) -> None:
    name = f"{NAME}-synthesis"
    flow.wait("synthesis starts", lambda: flow.phase("syn", name) == "Running", 600)
    began, before = time.monotonic(), sum(seconds for _, seconds in operator_processes())
    ledger = LedgerView(flow.store(f"s3://results/{NAME}/synthesis"))
    lease = kill_mid_shard(flow, ledger, name)
    print(f"worker {lease.worker} was killed in micro-shard {lease.shard}, lease {lease.epoch}")

    def ended() -> int | None:
        (status,) = flow.get("pod", lease.worker)["status"]["containerStatuses"]
        return status["state"].get("terminated", {}).get("exitCode")

    assert flow.wait("the kubelet sees it", ended, 30) == 137
    assert lease.shard not in ledger.commits()
    flow.wait("the micro-shard is committed", lambda: lease.shard in ledger.commits(), 300)
    again = [one for one in ledger.leases() if one.shard == lease.shard and one.epoch > lease.epoch]
    assert again, "it was committed under a later lease"
    assert lease.worker not in {one.worker for one in again}
    data = ledger.commits()[lease.shard]
    assert data in ledger.data(lease.shard)
    assert int(data.rpartition("/")[2].partition("-")[0]) == max(one.epoch for one in again)
    flow.wait("synthesis is done", lambda: flow.phase("syn", name) == "Complete", 600)
    busy, seconds = sum(s for _, s in operator_processes()) - before, time.monotonic() - began
    print(f"operator, busy: {100 * busy / seconds:.1f} % of a core over {seconds:.0f} s of synthesis")
    status = flow.object("syn", name)["status"]
    assert status["counts"]["pairs"] > 0
    assert len(ledger.commits()) == status["shards"]["total"] == status["shards"]["succeeded"]


def test_06_a_training_worker_is_killed(flow: Flow) -> None:
    name = f"{NAME}-train-instruct"

    def checkpoint() -> int:
        return int(flow.object("trn", name).get("status", {}).get("checkpoint") or 0)

    flow.wait("a checkpoint of a training", checkpoint, 600)
    pods = {p["metadata"]["labels"][REPLICA]: p for p in flow.pods(name=name, step="train", task="work", attempt="1")}
    assert sorted(pods) == ["master", "worker"]
    spec = yaml.safe_load(PIPELINE.read_text())["spec"]["training"]
    said = f"ZeRO stage {spec['deepspeed']['zeroStage']}, world size {spec['nodes']}, backend gloo"
    for pod in pods.values():
        assert f"DeepSpeed: {said}" in flow.logs(pod["metadata"]["name"], "pytorch")
    processes.kill(processes.main_process(pods["worker"], "pytorch"))
    flow.wait("the second attempt", lambda: flow.pods(name=name, step="train", task="work", attempt="2"), 180)
    stage = flow.stage("trn", name, "train")
    assert stage["failures"] == 1
    assert "exit code 137" in stage["lastFailure"], stage


def test_07_the_operator_is_killed_a_second_time_and_training_resumes(flow: Flow) -> None:
    kill_leader(flow)
    name = f"{NAME}-train-instruct"

    def resumed() -> bool:
        pods = flow.pods(name=name, step="train", task="work", attempt="2")
        master = [p["metadata"]["name"] for p in pods if p["metadata"]["labels"][REPLICA] == "master"]
        found = re.search(r"resuming after step (\d+)", flow.logs(master[0], "pytorch")) if master else None
        return found is not None and int(found[1]) > 0

    flow.wait("training resumes from its checkpoint", resumed, 240)
    assert flow.object("trn", name)["status"]["restarts"] == 1
    assert flow.stage("trn", name, "train")["failures"] == 1


def test_08_suspend_frees_the_pods_and_resume_goes_on(flow: Flow) -> None:
    flow.kubectl("patch", "ipt", NAME, "--type=merge", "-p", '{"spec":{"suspend":true}}')

    def freed() -> bool:
        running = [p for p in flow.get("pods")["items"] if p["status"]["phase"] in ("Pending", "Running")]
        return not running and flow.phase("ipt", NAME) == "Suspended"

    flow.wait("all pods are gone", freed, 240)
    flow.kubectl("patch", "ipt", NAME, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    flow.wait("it goes on", lambda: flow.phase("ipt", NAME) not in ("Suspended", ""), 60)
    stages = flow.object("syn", f"{NAME}-synthesis")["status"]["stages"]
    assert [stage["attempt"] for stage in stages] == [1]  # what was committed is not made again


def test_09_complete(flow: Flow) -> None:
    flow.wait("complete", lambda: flow.phase("ipt", NAME) == "Complete", 900)
    flow.kubectl("wait", "--for=condition=Complete", f"ipt/{NAME}", "--timeout=10s")
    children = flow.object("ipt", NAME)["status"]["childRefs"]
    assert {flow.phase(ref["kind"], ref["name"]) for ref in children} == {"Complete", "Ready"}
    assert len(children) == 7
    print(flow.kubectl("get", "ipt,corp,syn,trn,evl"))
    start = flow.marks["apply"]
    print("\n".join(f"{seconds - start:7.1f} s  {what}" for what, seconds in flow.marks.items()))


def test_10_few_writes_each_child_once_and_an_idle_operator_rests(flow: Flow) -> None:
    user = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
    begun = flow.object("ipt", NAME)["metadata"]["creationTimestamp"]
    ours = [
        w
        for w in controlplane.audited_writes(flow.layout, user)
        if w["namespace"] == LAB and w["time"] >= begun and w["code"] < 300
    ]
    made = [(w["resource"], w["name"]) for w in ours if w["verb"] == "create" and w["resource"] != "events"]
    twice = [what for what, count in collections.Counter(made).items() if count > 1]
    assert not twice, "two kills of the operator, and nothing is created twice"
    jobs = [name for resource, name in made if resource in ("jobs", "pytorchjobs")]
    writes = collections.Counter(f"{w['verb']} {w['resource']}" for w in ours)
    total = sum(writes.values())
    print(f"API writes of the operator: {total}, {total / len(jobs):.1f} for each of {len(jobs)} Jobs: {dict(writes)}")
    assert total / len(jobs) < 20
    before, began = sum(s for _, s in operator_processes()), time.monotonic()
    time.sleep(IDLE_SECONDS)  # what is measured is that nothing happens
    after = list(operator_processes())
    idle = (sum(s for _, s in after) - before) / (time.monotonic() - began)
    memory = ", ".join(f"{resident} MiB" for resident, _ in after)
    print(f"operator, idle: {100 * idle:.1f} % of a core in {len(after)} processes; resident {memory}")
    assert len(after) == 2
    assert idle < 0.1
    assert all(resident < 256 for resident, _ in after)


def test_11_every_document_has_one_verdict(flow: Flow) -> None:
    import pyarrow.parquet as pq

    corpus = load_manifest(flow.store(f"s3://results/{NAME}/corpus"))
    assert corpus.counts["documents"] == DOCUMENTS
    synthesis = flow.store(f"s3://results/{NAME}/synthesis")
    manifest = load_manifest(synthesis)
    seen: collections.Counter[str] = collections.Counter()
    pairs = 0
    objects = json.loads(synthesis.get("objects.json"))
    for shard in manifest.shards:
        for row in pq.read_table(io.BytesIO(synthesis.get(objects[shard.id]))).to_pylist():
            seen.update(shot["document"] for shot in row["shots"])
            pairs += sum(len(shot["pairs"]) for shot in row["shots"])
    counts = manifest.counts
    assert set(seen.values()) == {1}
    assert len(seen) == counts["documents"] == counts["augmented"] + counts["raw"] + counts["dead_letters"]
    assert pairs == counts["pairs"] > 0
    split = Split.model_validate(yaml.safe_load(PIPELINE.read_text())["spec"]["corpus"]["split"])
    wanted = {document.id for document in _corpus() if split_of(document.text, split) == "train"}
    assert seen.keys() == wanted


@pytest.mark.parametrize("arm", ["instruct", "vanilla"])
def test_12_training_learned(flow: Flow, arm: str) -> None:
    store = flow.store(f"s3://results/{NAME}/train-{arm}")
    manifest = load_manifest(store)
    path = next(f.path for f in manifest.files if f.path.endswith("metrics.jsonl"))
    losses = [json.loads(line)["loss"] for line in store.get(path).decode().splitlines()]
    assert len(losses) == manifest.counts["steps"] >= 50
    assert sum(losses[-10:]) < sum(losses[:10])
    assert flow.object("trn", f"{NAME}-train-{arm}")["status"]["loss"] == pytest.approx(sum(losses[-10:]) / 10)
    spec = yaml.safe_load(PIPELINE.read_text())["spec"]["training"]
    assert manifest.settings["deepspeed"]["zeroStage"] == spec["deepspeed"]["zeroStage"]
    assert manifest.settings["nodes"] == spec["nodes"]


def test_13_the_report_and_every_manifest_can_be_read(flow: Flow) -> None:
    report = json.loads(flow.store(f"s3://results/{NAME}/report").get("report.json"))
    tokens = {name: arm["train_tokens"] for name, arm in report["arms"].items()}
    wanted = yaml.safe_load(PIPELINE.read_text())["spec"]["training"]["tokens"]
    assert tokens == {"instruct": wanted, "vanilla": wanted}
    for part in ("corpus", "tuning-tasks", "synthesizer", "synthesis", "train-instruct", "train-vanilla", "evaluation"):
        store = flow.store(f"s3://results/{NAME}/{part}")
        manifest = load_manifest(store)
        assert manifest.files or manifest.shards, part
        for entry in manifest.files:
            assert hashlib.sha256(store.get(entry.path)).hexdigest() == entry.sha256, entry.path
        objects = json.loads(store.get("objects.json")) if part in ("tuning-tasks", "synthesis") else {}
        for shard in manifest.shards if objects else ():
            assert hashlib.sha256(store.get(objects[shard.id])).hexdigest() == shard.sha256, shard.id
    status = flow.object("ipt", NAME)["status"]
    assert status["output"]["uri"] == f"s3://results/{NAME}/report"


def test_14_delete_leaves_nothing_but_the_data(flow: Flow) -> None:
    started = time.monotonic()
    flow.kubectl("delete", "ipt", NAME, "--timeout=60s")
    print(f"delete returned after {time.monotonic() - started:.1f} s")

    def gone() -> bool:
        kinds = "ipt,corp,syn,trn,evl,jobs,pytorchjobs,pods,configmaps"
        left = [o for o in flow.get(kinds)["items"] if o["metadata"]["name"] != "kube-root-ca.crt"]
        return not left

    flow.wait("nothing is left", gone, 60)
    assert flow.store(f"s3://results/{NAME}/report").exists("report.json")


def test_15_upgrade_and_uninstall(flow: Flow) -> None:
    helm = [str(binaries.path("helm")), "--kubeconfig", str(flow.layout.kubeconfig), "-n", SYSTEM]
    values = yaml.safe_dump({**_values(images.load()), "controller": {"workers": 3}})
    chart = str(ROOT / "helm" / "instructpt")
    run([*helm, "upgrade", "instructpt", chart, "-f", "-", "--wait", "--timeout", "180s"], stdin=values)
    run([*helm, "test", "instructpt", "--timeout", "120s"])
    run([*helm, "uninstall", "instructpt", "--wait", "--timeout", "120s"])
    crds = flow.layout.kubectl("get", "crds", "-o", "name")
    assert "instructpt.dev" in crds  # kept, and with them every object of theirs


def _remove_leftovers(layout: Layout) -> None:
    """Of an earlier run in a test bed that was kept."""
    helm = [str(binaries.path("helm")), "--kubeconfig", str(layout.kubeconfig), "-n", SYSTEM]
    run([*helm, "uninstall", "instructpt", "--ignore-not-found", "--wait"])
    layout.kubectl("delete", "namespace", SYSTEM, LAB, "--ignore-not-found", "--timeout=100s")
    for bucket in ("raw", "results"):
        shutil.rmtree(layout.s3_data / bucket, ignore_errors=True)
        # What the server knows of the objects lies beside them; it would go on knowing.
        shutil.rmtree(layout.root / "versitygw" / bucket, ignore_errors=True)


def _values(refs: dict[str, str]) -> dict[str, Any]:
    def split(name: str) -> dict[str, str]:
        repository, _, tag = refs[name].rpartition(":")
        return {"repository": repository, "tag": tag}

    return {
        "image": {**split("operator"), "pullPolicy": "Never"},
        "images": {"synthesizer": {"cpu": split("synthesizer")}, "trainer": {"cpu": split("trainer")}},
        "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }


def _corpus() -> list[Document]:
    """Real English prose that every machine has: the documentation strings of Python's standard library."""
    from instructpt.corpus.builtin import documents

    return list(documents()[:DOCUMENTS])


def _documents() -> Iterator[bytes]:
    lines = [json.dumps({"id": document.id, "text": document.text}).encode() for document in _corpus()]
    for part in range(3):
        yield b"\n".join(lines[part::3]) + b"\n"
