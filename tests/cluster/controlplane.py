"""The control plane of the test bed: etcd, the API server with an audit log of writes, controllers, scheduler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cluster import binaries, parts
from cluster.layout import NODE_ADDRESS, POD_RANGE, SERVICE_RANGE, Layout

READY_SECONDS = 90.0
# Writes alone, without their bodies: to count what a job costs the API server.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "None"},
    ],
}


def start_api(layout: Layout) -> None:
    """Start etcd and the API server."""
    etcd = [
        str(binaries.path("etcd")),
        f"--data-dir={layout.root}/etcd",
        "--unsafe-no-fsync",  # the data ends with the run
        "--quota-backend-bytes=2147483648",
    ]
    parts.start(layout, "etcd", etcd)
    policy = layout.root / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    pki = layout.pki
    options = {
        "etcd-servers": "http://127.0.0.1:2379",
        "secure-port": "6443",
        "advertise-address": NODE_ADDRESS,
        "service-cluster-ip-range": SERVICE_RANGE,
        "tls-cert-file": f"{pki}/apiserver.crt",
        "tls-private-key-file": f"{pki}/apiserver.key",
        "client-ca-file": f"{pki}/ca.crt",
        "service-account-key-file": f"{pki}/sa.pub",
        "service-account-signing-key-file": f"{pki}/sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "kubelet-client-certificate": f"{pki}/admin.crt",
        "kubelet-client-key": f"{pki}/admin.key",
        "kubelet-preferred-address-types": "InternalIP",
        "audit-log-path": str(layout.audit_log),
        "audit-policy-file": str(policy),
        "audit-log-maxsize": "1000",
    }
    parts.start(layout, "kube-apiserver", _argv("kube-apiserver", options))


def is_ready(layout: Layout) -> bool:
    """Whether the API server says that it is ready."""
    try:
        return layout.kubectl("get", "--raw", "/readyz", timeout=10.0).strip() == "ok"
    except (RuntimeError, TimeoutError):
        return False


def wait_for_api(layout: Layout) -> None:
    """Wait until the API server is ready."""
    parts.wait_for(layout, "the API server", lambda: is_ready(layout), READY_SECONDS, "kube-apiserver")


def start_controllers(layout: Layout) -> None:
    """Start the controllers and the scheduler; the API server is ready by then."""
    controllers = {
        "kubeconfig": str(layout.kubeconfig),
        "service-account-private-key-file": f"{layout.pki}/sa.key",
        "root-ca-file": f"{layout.pki}/ca.crt",
        "use-service-account-credentials": "true",
        "leader-elect": "false",
        "allocate-node-cidrs": "true",
        "cluster-cidr": POD_RANGE,
        # Jobs are many here, and the usual 20 requests a second would be what a test measures.
        "kube-api-qps": "200",
        "kube-api-burst": "400",
    }
    parts.start(layout, "kube-controller-manager", _argv("kube-controller-manager", controllers))
    scheduler = {"kubeconfig": str(layout.kubeconfig), "leader-elect": "false"}
    parts.start(layout, "kube-scheduler", _argv("kube-scheduler", scheduler))


def audited_writes(layout: Layout, user: str | None = None) -> Iterator[dict[str, Any]]:
    """Every write that the API server has answered, oldest first: verb, user, resource, namespace, name, code.

    Args:
        layout: The test bed.
        user: Only those of this user, such as ``system:serviceaccount:NAMESPACE:NAME``.
    """
    with layout.audit_log.open() as lines:
        for line in lines:
            event = json.loads(line)
            name = event["user"].get("username", "")
            if user not in (None, name):
                continue
            target = event.get("objectRef", {})
            yield {
                "verb": event["verb"],
                "user": name,
                "resource": "/".join(filter(None, (target.get("resource"), target.get("subresource")))),
                "namespace": target.get("namespace", ""),
                "name": target.get("name", ""),
                "code": event.get("responseStatus", {}).get("code", 0),
                "agent": event.get("userAgent", ""),
                "time": event["requestReceivedTimestamp"],
            }


def _argv(name: str, options: dict[str, str]) -> list[str]:
    return [str(binaries.path(name)), *(f"--{option}={value}" for option, value in options.items())]
