"""Objects to render, shared by the unit tests, the golden files and the dry runs against a real API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructpt.api.runspec import StageResult
from instructpt.cluster.context import Images, Owner, RenderContext
from instructpt.cluster.render import render_runspec, render_task
from instructpt.local.spec_file import parse_resource
from instructpt.plan import Plan, plan_resource
from instructpt.plan.model import Stage, Task

VERSION = "0.0.0"
UID = "6f6f6f6f-0000-4000-8000-000000000001"
S3 = {"uri": "s3://lab/out", "endpoint": "https://s3.example.org", "secretRef": {"name": "lab"}}
IMAGES = Images(
    by_role={
        ("operator", "cpu"): "example.org/operator:1",
        ("synthesizer", "cuda"): "example.org/synthesizer:1",
        ("synthesizer", "cpu"): "example.org/synthesizer:1-cpu",
        ("trainer", "cuda"): "example.org/trainer:1",
        ("trainer", "cpu"): "example.org/trainer:1-cpu",
    }
)

POD_TEMPLATE: dict[str, Any] = {
    "labels": {"team": "nlp", "instructpt-team": "x"},
    "annotations": {"note": "mine"},
    "image": "example.org/own:7",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "resources": {
        "requests": {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "50Gi"},
        "limits": {"ephemeral-storage": "100Gi"},
    },
    "env": [{"name": "HF_HOME", "value": "/data/hub"}, {"name": "NCCL_DEBUG", "value": "WARN"}],
    "envFrom": [{"secretRef": {"name": "hub"}}],
    "volumes": [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "runspec", "emptyDir": {}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
    ],
    "volumeMounts": [
        {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/etc/instructpt/runspec"},
    ],
    "serviceAccountName": "default",
    "terminationGracePeriodSeconds": 17,
}


def corpus(**spec: Any) -> Any:
    return _resource("Corpus", {"uri": "s3://lab/raw/**/*.parquet", "storage": S3, **spec})


def synthesis(**spec: Any) -> Any:
    base = {
        "input": {"uri": "s3://lab/corpus", "secretRef": {"name": "raw-data"}},
        "storage": S3,
        "synthesizer": {"model": "instruction-pretrain/instruction-synthesizer"},
        "parallelism": 3,
        "engine": {"name": "vllm", "resources": {"gpus": 2, "cpus": 8, "memory": "64Gi"}},
        "queueName": "lab-queue",
    }
    return _resource("SynthesisJob", {**base, **spec})


def training(**spec: Any) -> Any:
    base = {
        "storage": S3,
        "init": {"preset": "1.3b"},
        "tokenizer": {"from": "mistralai/Mistral-7B-v0.1"},
        "mixture": [{"name": "pairs", "uri": "s3://lab/pairs", "format": "augmented"}],
        "tokens": "1B",
        "globalBatchRows": 256,
        "nodes": 2,
    }
    return _resource("TrainingJob", {**base, **spec})


def evaluation(**spec: Any) -> Any:
    base = {
        "storage": S3,
        "models": [{"name": "a", "uri": "s3://lab/a"}],
        "corpus": {"uri": "s3://lab/corpus"},
        "resources": {"gpus": 1},
    }
    return _resource("EvaluationJob", {**base, **spec})


def pipeline(**spec: Any) -> Any:
    base = {
        "storage": S3,
        "corpus": {"uri": "s3://lab/raw/*.jsonl"},
        "synthesis": {"synthesizer": {"model": "instruction-pretrain/instruction-synthesizer"}},
        "training": {"init": {"preset": "tiny"}, "tokens": "1M"},
    }
    return _resource("InstructionPretraining", {**base, **spec})


def _resource(kind: str, spec: Mapping[str, Any], name: str = "demo") -> Any:
    wire = {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
    return parse_resource(wire)


def context(resource: Any, *, uid: str = UID, namespace: str = "lab") -> RenderContext:
    owner = Owner(
        api_version=resource.api_version,
        kind=resource.kind,
        name=resource.metadata.name,
        namespace=namespace,
        uid=uid,
    )
    return RenderContext(owner=owner, policy=resource.spec, images=IMAGES)


def finished(resource: Any) -> Plan:
    """The plan once every stage has left its result, so that each of them is known."""
    results: dict[str, StageResult] = {}
    while True:
        plan = plan_resource(resource, results, code_version=VERSION)
        stage = plan.next_stage()
        if stage is None:
            return plan
        assert stage.key is not None
        assert stage.output is not None
        results[stage.key] = StageResult(uri=stage.output.uri, digest=f"sha256:{len(results):064x}", counts={})


def tasks(resource: Any) -> Iterator[tuple[Stage, Task]]:
    for stage in finished(resource).stages:
        for task in (stage.work, stage.finalize):
            if task is not None:
                yield stage, task


def rendered(resource: Any, task_name: str, *, attempt: int = 1, **kwargs: Any) -> list[dict[str, Any]]:
    """ConfigMap and object of one task."""
    stage, task = next((s, t) for s, t in tasks(resource) if t.name == task_name)
    ctx = context(resource, **kwargs)
    return [render_runspec(task, ctx), render_task(stage, task, attempt, ctx)]


def everything(resource: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """ConfigMaps and objects of every task of every stage."""
    ctx = context(resource, **kwargs)
    out = []
    for stage, task in tasks(resource):
        out += [render_runspec(task, ctx), render_task(stage, task, 1, ctx)]
    return out


def pod_templates(obj: Mapping[str, Any]) -> list[dict[str, Any]]:
    if obj["kind"] == "Job":
        return [obj["spec"]["template"]]
    if obj["kind"] == "PyTorchJob":
        return [replica["template"] for replica in obj["spec"]["pytorchReplicaSpecs"].values()]
    return []


CASES: dict[str, tuple[Any, str]] = {
    "corpus-inspect": (corpus(), "corpus"),
    "corpus-finalize": (corpus(queueName="lab-queue"), "corpus-finalize"),
    "synthesis": (synthesis(), "synthesis"),
    "training-2x8-zero3": (
        training(gpusPerNode=8, deepspeed={"zeroStage": 3}, queueName="lab-queue", resources={"memory": "512Gi"}),
        "train",
    ),
    "training-cpu": (training(init={"preset": "tiny"}, processesPerNode=2), "train"),
    "pod-template": (synthesis(podTemplate=POD_TEMPLATE), "synthesis"),
}
"""What the golden files hold: resource and task by name of the file."""
