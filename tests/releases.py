"""A real helm against the API server of the tests."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from apiserver import ApiServer
from cluster import binaries


def helm(server: ApiServer, *args: str) -> str:
    """What helm prints, standard error included; a failure is an AssertionError with the same."""
    home = {f"HELM_{kind}_HOME": str(server.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
    done = subprocess.run(
        [str(binaries.path("helm")), *args],
        env={"PATH": os.environ["PATH"], "HOME": str(server.folder), "KUBECONFIG": str(server.kubeconfig), **home},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def ensure_namespaces(server: ApiServer, *names: str) -> None:
    """Create those that are not there."""
    for name in names:
        status, answer = server.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert status in {201, 409}, answer


def corpus(name: str, **template: Any) -> dict[str, Any]:
    """A suspended Corpus, so nothing is started for it."""
    uri = "s3://bucket/prefix"
    spec: dict[str, Any] = {"suspend": True, "uri": f"{uri}/*.jsonl", "textField": "text", "storage": {"uri": uri}}
    if template:
        spec["podTemplate"] = template
    return {"apiVersion": "instructpt.dev/v1alpha1", "kind": "Corpus", "metadata": {"name": name}, "spec": spec}
