"""Prove that the operator works: its Lease is renewed, the API answers for all kinds, and a new object gets a status.

The object is a suspended Corpus, so no pod is started and no storage is needed. It is deleted at the end.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from kubernetes import client, config

GROUP, VERSION = "instructpt.dev", "v1alpha1"
KINDS = ("corpora", "evaluationjobs", "instructionpretrainings", "synthesisjobs", "trainingjobs")


def wait(what: str, deadline: float, ask: Callable[[], Any]) -> Any:
    """The first answer of ``ask`` that is true, asked once a second."""
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            print(f"ok: {what}: {answer}", flush=True)
            return answer
        time.sleep(1)
    raise SystemExit(f"failed: {what}: not so within the time allowed (check.timeoutSeconds)")


def check_lease(deadline: float, namespace: str, name: str) -> None:
    """The Lease has a holder that renews it. Two reads are compared, so clocks need not agree."""
    leases = client.CoordinationV1Api()
    seen: set[Any] = set()

    def renewed() -> str | None:
        try:
            spec = leases.read_namespaced_lease(name, namespace).spec
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        if spec.holder_identity:
            seen.add((spec.holder_identity, spec.renew_time))
        holders = [holder for holder, _ in seen]
        return next((f"held by {holder}" for holder in holders if holders.count(holder) > 1), None)

    wait(f"lease {namespace}/{name} is renewed", deadline, renewed)


def check_status(deadline: float, namespace: str) -> None:
    """The operator writes the status of a new object of ours."""
    objects = client.CustomObjectsApi()
    for kind in KINDS:
        objects.list_namespaced_custom_object(GROUP, VERSION, namespace, kind, limit=1)
    print(f"ok: the API answers for {', '.join(KINDS)}", flush=True)
    name = f"instructpt-check-{uuid.uuid4().hex[:8]}"
    where = (GROUP, VERSION, namespace, "corpora")
    uri = "s3://instructpt-check/never-read"
    spec = {"suspend": True, "uri": f"{uri}/*.jsonl", "textField": "text", "storage": {"uri": uri}}
    objects.create_namespaced_custom_object(
        *where, {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Corpus", "metadata": {"name": name}, "spec": spec}
    )
    try:
        wait(
            f"the operator set the status of corpus {namespace}/{name}",
            deadline,
            lambda: objects.get_namespaced_custom_object(*where, name).get("status", {}).get("phase"),
        )
    finally:
        objects.delete_namespaced_custom_object(*where, name)


def main() -> None:
    """Run all checks; the first that fails ends the process with 1."""
    deadline = time.monotonic() + float(os.environ["CHECK_TIMEOUT_SECONDS"])
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config()
    else:
        config.load_kube_config()
    try:
        if os.environ.get("CHECK_LEASE"):
            check_lease(deadline, *os.environ["CHECK_LEASE"].split("/"))
        check_status(deadline, os.environ["CHECK_NAMESPACE"])
    except client.ApiException as error:
        sys.exit(f"failed: the API server answered {error.status} {error.reason}: {error.body}")


if __name__ == "__main__":
    main()
