"""The main flow on the real cluster, in the order in which a user meets it; one test a step, each needs the last.

Images are built from this checkout, the chart is installed, one YAML file is applied. vLLM generates in pods, a master
and a worker train with DeepSpeed over gloo. On the way the operator is killed twice, a synthesizer pod once, a training
pod once, and everything is suspended once. Then what lies on S3 is read back and counted.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import binaries, controlplane, images, s3
from cluster.layout import S3_ENDPOINT, Layout, run

from instructpt.api.base import Access
from instructpt.corpus.manifest import load_manifest
from instructpt.storage import open_store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SYSTEM, OPERATOR, LAB, NAME = "instructpt-system", "instructpt-operator", "lab", "quickstart"
DOCUMENTS = 600
PIPELINE = ROOT / "tests" / "e2e" / "pipeline.yaml"


@dataclass
class Flow:
    """The run, and what was seen of it so far."""

    layout: Layout
    marks: dict[str, float] = field(default_factory=dict)
    failed: str = ""

    def kubectl(self, *args: str, stdin: str | None = None, namespace: str = LAB) -> str:
        return self.layout.kubectl("-n", namespace, *args, stdin=stdin)

    def get(self, *args: str, namespace: str = LAB) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.kubectl("get", *args, "-o", "json", namespace=namespace))
        return answer

    def object(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self.get(kind, name)
        except RuntimeError:
            return {}

    def phase(self, kind: str, name: str) -> str:
        return str(self.object(kind, name).get("status", {}).get("phase", ""))

    def pods(self, **labels: str) -> list[dict[str, Any]]:
        selector = ",".join(f"instructpt.dev/{k}={v}" for k, v in labels.items())
        found: list[dict[str, Any]] = self.get("pods", "-l", selector)["items"]
        return found

    def wait(self, what: str, check: Any, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := check()):
            ended = [c for c in self._conditions() if c["type"] == "Failed" and c["status"] == "True"]
            if ended or time.monotonic() > deadline:
                pytest.fail(f"{what}: {'the run failed' if ended else f'not within {seconds:.0f} s'}\n{self.picture()}")
            time.sleep(0.5)
        self.marks[what] = time.monotonic()
        return found

    def picture(self) -> str:
        """What a user would look at."""
        parts = [
            self.kubectl("get", "ipt,corp,syn,trn,evl,jobs,pytorchjobs,pods", "-o", "wide"),
            json.dumps(self._conditions(), indent=1),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-6000:],
            self.kubectl("logs", "-l", "app.kubernetes.io/name=instructpt", "--tail=60", namespace=SYSTEM),
        ]
        return "\n".join(parts)

    def store(self, uri: str) -> Any:
        return open_store(uri, access=Access(endpoint=S3_ENDPOINT))

    def _conditions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.object("ipt", NAME).get("status", {}).get("conditions", [])
        return found


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
    flow.wait("the corpus is inspected", lambda: flow.phase("corp", f"{NAME}-corpus") == "Complete", 120)
    assert flow.object("corp", f"{NAME}-corpus")["status"]["counts"]["documents"] == DOCUMENTS


def test_04_the_operator_is_killed_a_first_time(flow: Flow) -> None:
    _kill_leader(flow)
    flow.wait("the synthesizer trains", lambda: flow.pods(name=f"{NAME}-synthesizer", step="train", task="work"), 300)


def test_05_vllm_generates_and_a_pod_is_killed_mid_shard(flow: Flow) -> None:
    name = f"{NAME}-synthesis"
    flow.wait("synthesis starts", lambda: flow.phase("syn", name) == "Synthesizing", 600)

    def some_commits() -> bool:
        progress = flow.object("syn", name).get("status", {}).get("shards", {})
        return 0 < progress.get("succeeded", 0) < progress.get("total", 0)

    flow.wait("the first micro-shards are committed", some_commits, 300)
    pods = [p for p in flow.pods(name=name, task="work") if p["status"]["phase"] == "Running"]
    assert pods
    flow.kubectl("delete", "pod", pods[0]["metadata"]["name"], "--grace-period=0", "--force")
    flow.wait("synthesis is done", lambda: flow.phase("syn", name) == "Complete", 600)
    status = flow.object("syn", name)["status"]
    assert status["counts"]["pairs"] > 0


def test_06_a_training_pod_dies_and_training_resumes(flow: Flow) -> None:
    name = f"{NAME}-train-instruct"

    def checkpoint() -> int:
        return int(flow.object("trn", name).get("status", {}).get("checkpoint") or 0)

    flow.wait("a checkpoint of a training", checkpoint, 600)
    pods = flow.pods(name=name, step="train", task="work", attempt="1")
    assert sorted(p["metadata"]["labels"]["training.kubeflow.org/replica-type"] for p in pods) == ["master", "worker"]
    worker = next(p for p in pods if p["metadata"]["labels"]["training.kubeflow.org/replica-type"] == "worker")
    flow.kubectl("delete", "pod", worker["metadata"]["name"], "--grace-period=0", "--force")
    flow.wait("the second attempt", lambda: flow.pods(name=name, step="train", task="work", attempt="2"), 180)


def test_07_the_operator_is_killed_a_second_time(flow: Flow) -> None:
    _kill_leader(flow)
    name = f"{NAME}-train-instruct"

    def resumed() -> bool:
        master = "training.kubeflow.org/replica-type=master"
        try:
            logs = flow.kubectl(
                "logs", "--tail=-1", "-l", f"instructpt.dev/name={name},instructpt.dev/attempt=2,{master}"
            )
        except RuntimeError:  # its container has not started
            return False
        found = re.search(r"resuming after step (\d+)", logs)
        return found is not None and int(found[1]) > 0

    flow.wait("training resumes from its checkpoint", resumed, 240)
    status = flow.object("trn", name)["status"]
    assert status["restarts"] >= 1
    stage = next(s for s in status["stages"] if s["step"] == "train")
    assert stage["failures"] == 0, stage  # a pod that was taken away is nobody's fault


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
    assert {flow.phase(ref["kind"], ref["name"]) for ref in children} == {"Complete"}
    assert len(children) == 7
    print(flow.kubectl("get", "ipt,corp,syn,trn,evl"))
    start = flow.marks["apply"]
    print("\n".join(f"{seconds - start:7.1f} s  {what}" for what, seconds in flow.marks.items()))
    user = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
    audited = [w for w in controlplane.audited_writes(flow.layout, user) if w["namespace"] == LAB]
    begun = flow.object("ipt", NAME)["metadata"]["creationTimestamp"]
    writes = collections.Counter(f"{w['verb']} {w['resource']}" for w in audited if w["time"] >= begun)
    print(f"API writes of the operator: {sum(writes.values())}, {dict(writes)}")
    print("\n".join(_usage()))


def test_10_every_document_has_one_verdict(flow: Flow) -> None:
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


@pytest.mark.parametrize("arm", ["instruct", "vanilla"])
def test_11_training_learned(flow: Flow, arm: str) -> None:
    store = flow.store(f"s3://results/{NAME}/train-{arm}")
    manifest = load_manifest(store)
    path = next(f.path for f in manifest.files if f.path.endswith("metrics.jsonl"))
    losses = [json.loads(line)["loss"] for line in store.get(path).decode().splitlines()]
    assert len(losses) == manifest.counts["steps"] >= 50
    assert sum(losses[-10:]) < sum(losses[:10])


def test_12_the_report_and_every_manifest_can_be_read(flow: Flow) -> None:
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


def test_13_delete_leaves_nothing_but_the_data(flow: Flow) -> None:
    started = time.monotonic()
    flow.kubectl("delete", "ipt", NAME, "--timeout=60s")
    print(f"delete returned after {time.monotonic() - started:.1f} s")

    def gone() -> bool:
        kinds = "ipt,corp,syn,trn,evl,jobs,pytorchjobs,pods,configmaps"
        left = [o for o in flow.get(kinds)["items"] if o["metadata"]["name"] != "kube-root-ca.crt"]
        return not left

    flow.wait("nothing is left", gone, 60)
    assert flow.store(f"s3://results/{NAME}/report").exists("report.json")


def test_14_upgrade_and_uninstall(flow: Flow) -> None:
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


def _usage() -> Iterator[str]:
    """Memory and CPU time of each process of the operator."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            status = (folder / "status").read_text()
            times = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if any(part.endswith(b"/instructpt-operator") for part in command[:2]):
            resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]
            seconds = (int(times[11]) + int(times[12])) / ticks
            yield f"operator process: {resident} MiB resident, {seconds:.1f} s of CPU"


def _values(refs: dict[str, str]) -> dict[str, Any]:
    def split(name: str) -> dict[str, str]:
        repository, _, tag = refs[name].rpartition(":")
        return {"repository": repository, "tag": tag}

    return {
        "image": {**split("operator"), "pullPolicy": "Never"},
        "images": {"synthesizer": {"cpu": split("synthesizer")}, "trainer": {"cpu": split("trainer")}},
        "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }


def _documents() -> Iterator[bytes]:
    """Real English prose that every machine has: the documentation strings of Python's standard library."""
    from instructpt.corpus.builtin import documents

    found = documents()[:DOCUMENTS]
    lines = [json.dumps({"id": document.id, "text": document.text}).encode() for document in found]
    for part in range(3):
        yield b"\n".join(lines[part::3]) + b"\n"


def _kill_leader(flow: Flow) -> None:
    """Kill the operator's pod that leads, without grace; another takes over."""
    holder = flow.get("lease", OPERATOR, namespace=SYSTEM)["spec"]["holderIdentity"]
    pods = flow.get("pods", "-l", "app.kubernetes.io/name=instructpt", namespace=SYSTEM)["items"]
    leader = next(p["metadata"]["name"] for p in pods if holder.startswith(p["metadata"]["name"]))
    flow.kubectl("delete", "pod", leader, "--grace-period=0", "--force", namespace=SYSTEM)

    def taken_over() -> bool:
        now = flow.get("lease", OPERATOR, namespace=SYSTEM)["spec"].get("holderIdentity", "")
        return bool(now) and now != holder

    flow.wait(f"another leader after {leader}", taken_over, 60)
