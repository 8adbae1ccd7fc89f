"""What a user sees with kubectl, on a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from api_cases import minimal

from instructpt.api.crd import crd
from instructpt.api.v1alpha1 import KINDS
from instructpt.local.spec_file import parse_resource
from instructpt.plan.display import display

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

SAMPLES = sorted((Path(__file__).resolve().parents[3] / "manifests" / "samples").glob("*.yaml"))
AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def where(namespace: str, kind: str, name: str = "", sub: str = "") -> str:
    parts = ["/apis/instructpt.dev/v1alpha1/namespaces", namespace, KINDS[kind].plural, name, sub]
    return "/".join(p for p in parts if p)


def create(server: ApiServer, namespace: str, obj: dict[str, Any], status: dict[str, Any] | None = None) -> None:
    code, answer = server.request("POST", where(namespace, obj["kind"]) + "?fieldValidation=Strict", obj)
    assert code == 201, answer
    if status:
        sub = where(namespace, obj["kind"], obj["metadata"]["name"], "status") + "?fieldValidation=Strict"
        code, answer = server.request("PATCH", sub, {"status": status}, content_type="application/merge-patch+json")
        assert code == 200, answer


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.stem)
def test_a_sample_is_applied_twice_without_a_change(apiserver: ApiServer, namespace: str, sample: Path) -> None:
    obj = yaml.safe_load(sample.read_text())
    one = where(namespace, obj["kind"], obj["metadata"]["name"])
    apiserver.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(sample))
    first = apiserver.request("GET", one)[1]
    # Where defaults were filled in inside a list, kubectl sends the list again and says "configured": nothing changes.
    apiserver.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(sample))
    again = apiserver.request("GET", one)[1]
    assert first["metadata"]["generation"] == again["metadata"]["generation"] == 1
    assert first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]
    assert apiserver.kubectl("diff", "-n", namespace, "-f", str(sample)) == ""
    # What the server keeps means what the file means.
    assert parse_resource(again).spec == parse_resource(obj).spec


def test_a_wrong_object_is_refused_before_anything_is_made(apiserver: ApiServer, namespace: str) -> None:
    from apiserver import KubectlError

    wrong = yaml.safe_dump(minimal("TrainingJob", sequenceLength=1001))
    with pytest.raises(KubectlError) as error:
        apiserver.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", input=wrong)
    assert "sequenceLength must be a multiple of 8; round it down or up" in str(error.value)
    typo = yaml.safe_dump(minimal("TrainingJob", sequnceLength=1024))
    with pytest.raises(KubectlError) as error:
        apiserver.kubectl("apply", "-n", namespace, "-f", "-", input=typo)
    assert 'unknown field "spec.sequnceLength"' in str(error.value)
    assert "No resources found" in apiserver.kubectl("get", "trn", "-n", namespace)


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child.get("items", child), f"{path}.{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_explain_describes_every_field(apiserver: ApiServer, kind: str) -> None:
    """``kubectl explain`` reads this document; the command itself is asked for the deepest fields and some others."""
    code, document = apiserver.request("GET", "/openapi/v3/apis/instructpt.dev/v1alpha1")
    assert code == 200
    published = document["components"]["schemas"][f"dev.instructpt.v1alpha1.{kind}"]
    own = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    described = {
        path: child.get("description", "")
        for part in ("spec", "status")
        for path, child in _fields(published["properties"][part], part)
    }
    wanted = {p: c["description"] for part in ("spec", "status") for p, c in _fields(own["properties"][part], part)}
    assert described == wanted
    assert all(wanted.values())
    assert len(wanted) > 100
    deepest = max(wanted, key=lambda path: path.count("."))
    for path in ("spec", "status", "spec.podTemplate.volumes.persistentVolumeClaim", deepest):
        said = apiserver.kubectl("explain", f"{KINDS[kind].plural}.{path}")
        assert "DESCRIPTION:" in said
        text = wanted.get(path)
        if text:
            assert re.sub(r"\s+", " ", text) in re.sub(r"\s+", " ", said), path


# Headers and cells as the guide of kubectl shows them: kind, name, changes of the spec, status, and the rows.
TABLES: list[tuple[str, str, dict[str, Any], dict[str, Any], str, str]] = [
    (
        "InstructionPretraining",
        "medicine",
        {"queueName": "gpus", "training__init": {"from": "meta-llama/Meta-Llama-3-8B"}},
        {
            "phase": "Training", "synthesis": "512/512 (100%)", "training": "12000/50000", "gate": "Pending",
            "progress": {"etaSeconds": 18_600}, "cost": "$312", "output": {"uri": "s3://lab/x", "digest": "d"},
        },
        "NAME PHASE SYNTHESIS TRAINING GATE ETA AGE | QUEUE MODEL ARMS COST OUTPUT",
        "medicine|Training|512/512 (100%)|12000/50000|Pending|5h10m|AGE|gpus|meta-llama/Meta-Llama-3-8B|"
        "instruct,vanilla|$312|s3://lab/x",
    ),
    (
        "Corpus",
        "pubmed",
        {},
        {
            "phase": "Ready", "counts": {"documents": 15_200_000, "tokens": 3_100_000_000}, "shards": {"total": 1024},
            "output": {"uri": "s3://lab/x", "digest": "sha256:ab"},
        },
        "NAME PHASE DOCUMENTS TOKENS SHARDS AGE | FORMAT URI DIGEST",
        "pubmed|Ready|15.2M|3.1B|1024|AGE|auto|/data/*.jsonl|sha256:ab",
    ),
    (
        "SynthesisJob",
        "finance-synth",
        {"queueName": "gpus"},
        {
            "phase": "Running", "shards": {"succeeded": 147, "total": 512},
            "counts": {"pairs": 4_100_000, "dead_letters": 3},
            "progress": {"etaSeconds": 3000, "tokensPerSecond": 12_345.6},
            "output": {"uri": "s3://lab/x", "digest": "d"},
        },
        "NAME PHASE PROGRESS PAIRS RESTARTS AGE | QUEUE MODEL FAILED TOK/S ETA OUTPUT",
        "finance-synth|Running|147/512 (28%)|4.1M|0|AGE|gpus|a/b|3|12.3k|50m|s3://lab/x",
    ),
    (
        "TrainingJob",
        "medicine-train-instruct",
        {},
        {
            "phase": "Running", "step": 12_000, "steps": 50_000, "loss": 2.31412, "checkpoint": 11_500, "restarts": 1,
            "launcher": "PyTorchJob", "progress": {"etaSeconds": 18_600, "tokensPerSecond": 8000, "mfu": 0.4123},
        },
        "NAME PHASE STEP LOSS CHECKPOINT RESTARTS AGE | OBJECTIVE LAUNCHER QUEUE TOK/S MFU ETA",
        "medicine-train-instruct|Running|12000/50000|2.314|11500|1|AGE|Pretraining|PyTorchJob||8.0k|41.2%|5h10m",
    ),
    (
        "EvaluationJob",
        "medicine-eval",
        {
            "models": [{"name": "instruct", "uri": "/a"}, {"name": "vanilla", "uri": "/b"}], "baseline": "vanilla",
            "tasks": ["qa-exact-match", "bits-per-byte"],
        },
        {
            "phase": "Complete", "progress": {"done": 3, "total": 3, "unit": "tasks"}, "gate": "Passed",
            "scores": {"instruct/qa-exact-match": 61.3, "vanilla/qa-exact-match": 58.4},
            "output": {"uri": "s3://lab/x", "digest": "d"},
        },
        "NAME PHASE PROGRESS SCORE DELTA GATE AGE | TASKS BASELINE OUTPUT",
        "medicine-eval|Complete|3/3|61.3|+2.9|Passed|AGE|qa-exact-match,bits-per-byte|vanilla|s3://lab/x",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "spec", "status", "headers", "row"), TABLES, ids=[t[0] for t in TABLES])
def test_the_server_renders_the_columns_of_the_guide(
    apiserver: ApiServer,
    namespace: str,
    kind: str,
    name: str,
    spec: dict[str, Any],
    status: dict[str, Any],
    headers: str,
    row: str,
) -> None:
    obj = minimal(kind, name, **spec)
    full = parse_resource(obj).to_wire()["spec"]
    create(apiserver, namespace, obj, {**status, "display": display(kind, status, full)})
    code, table = apiserver.request("GET", where(namespace, kind), accept=AS_TABLE)
    assert code == 200
    columns = table["columnDefinitions"]
    narrow, wide = (part.split() for part in headers.split("|"))
    assert [c["name"].upper() for c in columns if c["priority"] == 0] == narrow
    assert len(narrow) <= 7
    shown = {c["name"].upper(): cell for c, cell in zip(columns, table["rows"][0]["cells"], strict=True)}
    assert re.fullmatch(r"\d+s", shown["AGE"])
    shown["AGE"] = "AGE"
    cells = ["" if shown[h] is None else str(shown[h]) for h in [*narrow, *wide]]
    assert cells == row.split("|")
    # As people see it.
    lines = apiserver.kubectl("get", KINDS[kind].short_name, "-n", namespace).splitlines()
    assert lines[0].split() == narrow
    lines = apiserver.kubectl("get", KINDS[kind].short_name, "-n", namespace, "-o", "wide").splitlines()
    assert lines[0].split() == [*narrow, *wide]


def test_the_category_lists_all_kinds(apiserver: ApiServer, namespace: str) -> None:
    for kind in KINDS:
        create(apiserver, namespace, minimal(kind))
    names = apiserver.kubectl("get", "instructpt", "-n", namespace, "-o", "name").split()
    assert sorted(names) == sorted(f"{kind.lower()}.instructpt.dev/x" for kind in KINDS)


def test_wait_sees_conditions_and_phases(apiserver: ApiServer, namespace: str) -> None:
    done = {
        "type": "Complete",
        "status": "True",
        "reason": "AllStagesDone",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    create(apiserver, namespace, minimal("SynthesisJob", "done"), {"phase": "Complete", "conditions": [done]})
    said = apiserver.kubectl("wait", "--for=condition=Complete", "syn/done", "-n", namespace, "--timeout=10s")
    assert "condition met" in said
    said = apiserver.kubectl(
        "wait", "--for=jsonpath={.status.phase}=Complete", "syn/done", "-n", namespace, "--timeout=10s"
    )
    assert "condition met" in said


def test_scale_and_delete(apiserver: ApiServer, namespace: str) -> None:
    create(apiserver, namespace, minimal("SynthesisJob"), {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"})
    apiserver.kubectl("scale", "syn/x", "--replicas=8", "-n", namespace)
    assert json.loads(apiserver.kubectl("get", "syn/x", "-n", namespace, "-o", "json"))["spec"]["parallelism"] == 8
    apiserver.kubectl("delete", "syn/x", "-n", namespace, timeout=10)  # it waits for the end
    assert apiserver.request("GET", where(namespace, "SynthesisJob", "x"))[0] == 404


def test_edits_are_let_through_and_refused_as_the_message_says(apiserver: ApiServer, namespace: str) -> None:
    from apiserver import KubectlError

    create(apiserver, namespace, minimal("SynthesisJob"), {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"})
    patch = json.dumps({"spec": {"suspend": True, "parallelism": 2}})
    apiserver.kubectl("patch", "syn/x", "-n", namespace, "--type=merge", "-p", patch)
    with pytest.raises(KubectlError) as error:
        apiserver.kubectl("patch", "syn/x", "-n", namespace, "--type=merge", "-p", '{"spec":{"shots":5}}')
    assert (
        "spec.shots cannot change once the object has started; create a new object, or delete this one and create it "
        "again" in str(error.value)
    )
