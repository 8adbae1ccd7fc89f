"""Every rendered object against a real API server: strict fields, its defaults, and restricted namespaces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import rendering
import yaml
from cluster import binaries

from instructpt.cluster.render import render_plan, to_yaml
from instructpt.plan import plan_resource

if TYPE_CHECKING:
    from apiserver import ApiServer

CRD = "crd/pytorchjobs.kubeflow.org"
LEVELS = ("enforce", "warn")
RESOURCES = {
    "corpus": rendering.corpus(),
    "synthesis": rendering.synthesis(),
    "training": rendering.training(gpusPerNode=8, deepspeed={"zeroStage": 3}, queueName="lab-queue"),
    "training-cpu": rendering.training(nodes=1, init={"preset": "tiny"}),
    "training-gang": rendering.training(podTemplate={"schedulerName": "volcano"}, queueName="lab-queue"),
    "evaluation": rendering.evaluation(),
    "pod-template": rendering.synthesis(podTemplate=rendering.POD_TEMPLATE),
    "managed-by": rendering.synthesis(managedBy="kueue.x-k8s.io/multikueue"),
}


@pytest.fixture(scope="module")
def pytorchjobs(apiserver: ApiServer) -> Iterator[None]:
    """The CRD of the training operator, which is taken away again if it was not there."""
    there = bool(apiserver.kubectl("get", CRD, "--ignore-not-found", "-o", "name").strip())
    if not there:
        source = binaries.training_operator_source() / "manifests" / "base" / "crds" / "kubeflow.org_pytorchjobs.yaml"
        apiserver.kubectl("create", "-f", str(source))
    try:
        path, deadline = "/apis/kubeflow.org/v1/pytorchjobs?limit=1", time.monotonic() + 30
        while apiserver.request("GET", path)[0] != 200:
            assert time.monotonic() < deadline, "pytorchjobs are not served"
            time.sleep(0.1)
        yield
    finally:
        if not there:
            apiserver.kubectl("delete", CRD, "--wait=true")


@pytest.fixture
def restricted(apiserver: ApiServer, namespace: str) -> str:
    """A namespace that takes restricted pods alone and warns of templates of others."""
    labels = [f"pod-security.kubernetes.io/{level}=restricted" for level in LEVELS]
    apiserver.kubectl("label", "namespace", namespace, *labels)
    deadline = time.monotonic() + 30
    while not apiserver.kubectl("get", "sa", "default", "-n", namespace, "--ignore-not-found").strip():
        assert time.monotonic() < deadline, "no service account"
        time.sleep(0.1)
    return namespace


def dry_run(server: ApiServer, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the server would store; a warning is a failure."""
    printed = server.kubectl(
        "create", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-", "-o", "yaml",
        input=to_yaml(objects),
    )  # fmt: skip
    return list(yaml.safe_load_all(printed))


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES)
def test_the_server_takes_every_object_as_it_is(
    apiserver: ApiServer, restricted: str, pytorchjobs: None, resource: Any
) -> None:
    objects = rendering.everything(resource, namespace=restricted)
    stored = dry_run(apiserver, objects)
    assert len(stored) == len(objects)
    for ours, theirs in zip(objects, stored, strict=True):
        assert missing(ours, theirs) == []


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES)
def test_a_restricted_namespace_takes_the_pods(apiserver: ApiServer, restricted: str, resource: Any) -> None:
    pods = []
    for obj in rendering.everything(resource):
        for index, template in enumerate(rendering.pod_templates(obj)):
            spec = {k: v for k, v in template["spec"].items() if k != "priorityClassName"}
            name = f"{obj['metadata']['name']}-{index}"
            meta = {**template["metadata"], "name": name, "namespace": restricted}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    assert len(dry_run(apiserver, pods)) == len(pods)


def test_a_pod_that_is_not_restricted_is_refused(apiserver: ApiServer, restricted: str) -> None:
    """So the test above can fail."""
    template = rendering.pod_templates(rendering.rendered(rendering.corpus(), "corpus")[1])[0]
    del template["spec"]["containers"][0]["securityContext"]["capabilities"]
    meta = {"name": "open", "namespace": restricted}
    with pytest.raises(Exception, match="unrestricted capabilities"):
        dry_run(apiserver, [{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}])


def test_the_server_takes_the_plan_of_a_pipeline(apiserver: ApiServer, restricted: str, pytorchjobs: None) -> None:
    resource = rendering.pipeline()
    plan = plan_resource(resource, {}, code_version=rendering.VERSION)
    objects = render_plan(resource, plan, rendering.context(resource, uid="", namespace=restricted))
    assert len(dry_run(apiserver, objects)) == len(objects)


def test_workers_can_be_scaled_in_both_directions(apiserver: ApiServer, restricted: str) -> None:
    """Parallelism and completions change together; nothing that is fixed stands in the way."""
    config, work = rendering.rendered(rendering.synthesis(), "synthesis", uid="", namespace=restricted)
    work["spec"]["suspend"] = True
    apiserver.kubectl("create", "-f", "-", input=to_yaml([config, work]))
    target = f"job/{work['metadata']['name']}"
    for count in (8, 1):
        patch = f'{{"spec":{{"parallelism":{count},"completions":{count}}}}}'
        apiserver.kubectl("patch", target, "-n", restricted, "--type=merge", "-p", patch)
        shape = "jsonpath={.spec.parallelism},{.spec.completions}"
        assert apiserver.kubectl("get", target, "-n", restricted, "-o", shape) == f"{count},{count}"


def missing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Paths of what the server dropped or changed; what it adds is its own affair."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [found for key, value in ours.items() for found in missing(value, theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [f for i, pair in enumerate(zip(ours, theirs, strict=True)) for f in missing(*pair, f"{path}[{i}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]
