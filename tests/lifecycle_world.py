"""A running operator on the test bed, its documents on S3, and the client of a user."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import operators
import pytest
import yaml
from botocore.exceptions import ClientError
from cluster import images, s3
from cluster.layout import S3_ENDPOINT, Layout
from lifecycle import PODS, Object

from instructpt.plan.naming import ANNOTATION_RECONCILE
from instructpt_operator import executor
from instructpt_operator.__main__ import Operator
from instructpt_operator.reconcilers import decide
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import CONFIG_MAPS, JOBS, OURS

ROOT = Path(__file__).parents[1]
BUCKET = "lifecycle"
PAUSE = "lifecycle.test/reconcile"
"""What ``instructpt.dev/reconcile`` is called for the operator under test: one that is installed here too takes the
objects of this test for paused."""
DOCUMENTS, NAMESPACE = "<documents>", "<namespace>"
"""In an object: where the documents of this run lie, and its namespace."""


@dataclass
class World:
    """The running operator, and the client of a user."""

    layout: Layout
    client: KubeClient
    namespaces: tuple[str, str]
    settings: dict[str, Any]
    s3: Any
    operator: Operator | None = None

    @property
    def namespace(self) -> str:
        return self.namespaces[0]

    def create(self, obj: Object, namespace: int = 0) -> Object:
        """Create an object of ours. Another operator that may be installed here takes it for paused."""
        annotations = {**obj["metadata"].get("annotations", {}), ANNOTATION_RECONCILE: "disabled"}
        meta = {**obj["metadata"], "annotations": annotations}
        space = self.namespaces[namespace]
        text = json.dumps({**obj, "metadata": meta}).replace(DOCUMENTS, f"s3://{BUCKET}/{self.namespace}")
        text = text.replace(NAMESPACE, self.namespace)
        return operators.create(self.client, space, json.loads(text))

    def get(self, obj: Object, namespace: int = 0) -> Object | None:
        return operators.get(self.client, self.namespaces[namespace], obj)

    def patch(self, obj: Object, body: Object, namespace: int = 0) -> Object:
        type_ = OURS[obj["kind"]]
        return self.client.merge_patch(type_, self.namespaces[namespace], obj["metadata"]["name"], body)

    def edit(self, obj: Object, **spec: Any) -> Object:
        return self.patch(obj, {"spec": spec})

    def delete(self, obj: Object, namespace: int = 0) -> None:
        self.kubectl("delete", obj["kind"], obj["metadata"]["name"], "--timeout=30s", namespace=namespace)

    def wait(self, obj: Object, condition: str, seconds: float = 90.0, namespace: int = 0) -> Object:
        space = self.namespaces[namespace]
        return operators.wait_condition(self.client, space, obj, condition, seconds=seconds)

    def apply(self, obj: Object, namespace: int = 0) -> None:
        self.layout.kubectl("-n", self.namespaces[namespace], "apply", "-f", "-", stdin=json.dumps(obj))

    def kubectl(self, *args: str, namespace: int = 0) -> str:
        return self.layout.kubectl("-n", self.namespaces[namespace], *args)

    def owned(self, name: str) -> list[str]:
        """Everything in the cluster that was made for an object, and the object itself."""
        found = []
        for type_ in (*OURS.values(), JOBS, PODS, CONFIG_MAPS):
            for o in self.client.list(type_, self.namespace):
                if name in (o["metadata"]["name"], o["metadata"].get("labels", {}).get("instructpt.dev/name")):
                    found.append(f"{type_.kind}/{o['metadata']['name']}")
        return found

    def pods(self, name: str) -> list[Object]:
        return self.client.list(PODS, self.namespace, label_selector=f"instructpt.dev/name={name}")

    def keys(self, prefix: str) -> dict[str, str]:
        """Objects on S3 below a prefix of this run, with their ETags."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.namespace}/{prefix}")
        return {o["Key"]: o["ETag"] for page in pages for o in page.get("Contents", ())}

    def put(self, name: str, body: bytes) -> None:
        """Write an object of this run on S3."""
        self.s3.put_object(Bucket=BUCKET, Key=f"{self.namespace}/{name}", Body=body)

    def start_operator(self) -> None:
        running = Operator(
            operators.settings(self.namespace, watchNamespaces=list(self.namespaces), **self.settings),
            kubeconfig=str(self.layout.kubeconfig),
            namespace=self.namespace, host="127.0.0.1",
        )  # fmt: skip
        running.start()
        self.operator = running

    def stop_operator(self) -> None:
        if self.operator is not None:
            self.operator.stop()
            self.operator = None


@contextlib.contextmanager
def running(layout: Layout) -> Iterator[World]:
    """Two namespaces with Secrets, documents on S3, and the operator with the intervals of the chart."""
    refs = images.load(["operator", "trainer"])
    image = {"cpu": refs["operator"], "cuda": refs["operator"]}  # rules need no model, so this image has all of it
    settings = {
        # From here pods have no address, so there is nothing to ask for progress; their state is what matters.
        "progress": {"enabled": False, "intervalSeconds": 10},
        "images": {
            "operator": {"cpu": refs["operator"]},
            "synthesizer": image,
            "trainer": {"cpu": refs["trainer"], "cuda": refs["trainer"]},
            "pullPolicy": "Never",
        },
    }
    client = KubeClient.connect(str(layout.kubeconfig))
    install_crds(layout, client)
    names = (f"lc-{uuid.uuid4().hex[:8]}-a", f"lc-{uuid.uuid4().hex[:8]}-b")
    world = World(layout=layout, client=client, namespaces=names, settings=settings, s3=s3_client(layout))
    with contextlib.suppress(ClientError):
        world.s3.create_bucket(Bucket=BUCKET)
    put_documents(world)
    with pytest.MonkeyPatch.context() as patch:
        for module in (decide, executor):
            patch.setattr(module, "ANNOTATION_RECONCILE", PAUSE)
        try:
            for name in names:
                layout.kubectl("create", "namespace", name)
            world.start_operator()
            yield world
        finally:
            world.stop_operator()
            for name in names:  # Jobs before their namespace: docs/user-guides/lifecycle.md tells why
                kinds = ",".join(type_.plural for type_ in OURS.values())
                layout.kubectl("-n", name, "delete", kinds, "--all", "--wait=false")
                operators.wait_for(lambda name=name: not client.list(JOBS, name), otherwise="Jobs are left")
            layout.kubectl("delete", "namespace", *names, "--wait=false")


def s3_client(layout: Layout) -> Any:
    """A client of the S3 server of the test bed."""
    keys = s3.credentials(layout)
    return boto3.client(
        "s3", endpoint_url=S3_ENDPOINT, region_name="us-east-1", aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def install_crds(layout: Layout, client: KubeClient) -> None:
    """Our CRDs as of this checkout, marked so that the chart takes them over where it is installed later."""
    for path in sorted((ROOT / "manifests" / "crds").glob("instructpt.dev_*.yaml")):
        crd = yaml.safe_load(path.read_text())
        meta = crd["metadata"]
        meta["labels"] = {**meta["labels"], "app.kubernetes.io/managed-by": "Helm"}
        release = {"release-name": "instructpt", "release-namespace": "instructpt-system"}
        meta["annotations"] = {f"meta.helm.sh/{name}": value for name, value in release.items()}
        with contextlib.suppress(RuntimeError):
            there = json.loads(layout.kubectl("get", "crd", meta["name"], "-o", "json"))
            if _versions(there) == _versions(crd):
                continue
        layout.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(crd))
    for type_ in OURS.values():
        operators.wait_for(lambda type_=type_: client.serves(type_), otherwise=f"{type_.kind} is not served")


def _versions(crd: Object) -> list[Any]:
    return [v["schema"] for v in crd["spec"]["versions"]]


def put_documents(world: World) -> None:
    """Documents of this run: good ones, many small ones, some or many records that are none, a damaged object."""

    def lines(count: int, broken: int = 0) -> bytes:
        whole = [json.dumps({"text": f"Fact {n}: the number {n} follows {n - 1}. " * 8}) for n in range(count)]
        return "\n".join([*whole, *['{"text": "cut'] * broken]).encode()

    files = {
        "good/part.jsonl": lines(40),
        "many/part.jsonl": lines(200),
        "changes/part.jsonl": lines(40),
        "few-bad/part.jsonl": lines(199, broken=1),
        "bad/part.jsonl": lines(6, broken=4),
        "damaged/part.parquet": b"PAR1" + b"\0" * 64,
    }
    for name, body in files.items():
        world.put(f"docs/{name}", body)
