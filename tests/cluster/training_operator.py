"""The real training operator, as a pod, from the manifests in its Go module.

Three things differ from its own standalone overlay: only PyTorchJobs are enabled and known, its init container comes
from a template that a restricted namespace admits, and its webhook has a certificate from the start (left to itself it
makes one, and waits until the kubelet brings that into its pod: one to four minutes).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from cluster import binaries, node, parts, pki
from cluster.base_image import NSLOOKUP, TRAINING_OPERATOR
from cluster.layout import Layout, run

NAMESPACE = "kubeflow"
NAME = "training-operator"
CERTIFICATE = "training-operator-webhook-cert"
READY_SECONDS = 90.0
OTHER_KINDS = ("tfjobs", "xgboostjobs", "mpijobs", "paddlejobs", "jaxjobs")

# What we tell our users to give it.
INIT_TEMPLATE = Path(__file__).parents[2] / "instructpt/cluster/launchers/pytorchjob-init-container.yaml"


def install(layout: Layout) -> None:
    """Apply the operator; it becomes ready later."""
    layout.kubectl("apply", "--server-side", "-f", "-", stdin=_manifests())
    node.apply(layout, _certificate(layout))


def wait_for(layout: Layout) -> None:
    """Wait until the operator is ready and its webhook answers."""
    selector = f"deployment/{NAME}"
    seconds = f"--timeout={READY_SECONDS:.0f}s"
    try:
        layout.kubectl(
            "-n", NAMESPACE, "wait", "--for=condition=Available", selector, seconds, timeout=READY_SECONDS + 9
        )
    except RuntimeError as error:
        state = layout.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide")
        raise parts.PartFailed(f"{error}\n{state}") from error
    # kube-proxy learns of the ready pod a moment later than we do.
    deadline = time.monotonic() + 30.0
    while True:
        try:
            layout.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(_probe()))
        except RuntimeError as error:
            if "failed calling webhook" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _manifests() -> str:
    """The objects to apply, kept in the cache: rendering them takes seconds."""
    overlay = _overlay("BASE")
    key = hashlib.sha256(
        repr((sorted(overlay.items()), binaries.PROGRAMS["training-operator.v1"])).encode()
    ).hexdigest()
    cached = binaries.cache_folder() / "manifests" / f"training-operator-{key[:16]}.yaml"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            base = binaries.training_operator_source() / "manifests/overlays/standalone"
            # kustomize takes folders by relative paths alone.
            for name, content in _overlay(os.path.relpath(base, os.path.realpath(scratch))).items():
                Path(scratch, name).write_text(content)
            rendered = run([str(binaries.path("kubectl")), "kustomize", scratch])
            aside = Path(scratch, "rendered")
            aside.write_text(rendered)
            shutil.copy2(aside, cached.with_suffix(".new"))
            cached.with_suffix(".new").replace(cached)
    return cached.read_text()


def _overlay(base: str) -> dict[str, str]:
    """The files of a kustomize overlay on the operator's own."""
    removed: list[dict[str, object]] = [
        {
            "$patch": "delete",
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind}.kubeflow.org"},
        }
        for kind in OTHER_KINDS
    ]
    secret = {"name": CERTIFICATE, "namespace": NAMESPACE}
    removed.append({"$patch": "delete", "apiVersion": "v1", "kind": "Secret", "metadata": secret})
    patches = [{"patch": json.dumps(patch)} for patch in (*removed, _deployment())]
    image, _, tag = TRAINING_OPERATOR.rpartition(":")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [base],
        "configMapGenerator": [{"name": "init-container", "files": ["initContainer.yaml"]}],
        "images": [{"name": "ghcr.io/kubeflow/training-v1/training-operator", "newName": image, "newTag": tag}],
        "patches": patches,
    }
    return {"kustomization.yaml": json.dumps(kustomization), "initContainer.yaml": INIT_TEMPLATE.read_text()}


def _deployment() -> dict[str, object]:
    container = {
        "name": NAME,
        "imagePullPolicy": "Never",
        "args": ["--enable-scheme=pytorchjob", f"--pytorch-init-container-image={NSLOOKUP}"],
        "readinessProbe": {"initialDelaySeconds": 1, "periodSeconds": 1},
        # Where the operator looks for a template by itself.
        "volumeMounts": [{"name": "init-container", "mountPath": "/etc/config"}],
    }
    volume = {"name": "init-container", "configMap": {"name": "init-container"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}},
    }


def _certificate(layout: Layout) -> dict[str, object]:
    """A certificate that the operator finds good: by an authority of the name that it would choose."""
    ca, webhook = layout.pki / "webhook-ca", layout.pki / "webhook"
    pki.authority(ca, "training-operator-ca")
    host = f"{NAME}.{NAMESPACE}.svc"
    pki.issue(ca, webhook, f"/CN={host}", [f"DNS:{host}"])
    files = {"ca.crt": f"{ca}.crt", "ca.key": f"{ca}.key", "tls.crt": f"{webhook}.crt", "tls.key": f"{webhook}.key"}
    data = {name: base64.b64encode(Path(path).read_bytes()).decode() for name, path in files.items()}
    metadata = {"name": CERTIFICATE, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def _probe() -> dict[str, object]:
    container = {"name": "pytorch", "image": NSLOOKUP}
    replica = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": {"Master": replica}},
    }
