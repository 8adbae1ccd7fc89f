"""The chart's optional admission policy on a real API server: what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
import threading
from typing import Any

import charts
import pytest
import yaml
from apiserver import ApiServer, KubectlError
from releases import corpus

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def render() -> charts.Render:
    return charts.Render(charts.helm_or_skip())


def test_admission_policy_limits_accounts_registries_and_tags(
    apiserver: ApiServer, namespace: str, render: charts.Render
) -> None:
    policy = {
        "admissionPolicy.enabled": True,
        "admissionPolicy.serviceAccounts": ["trainer"],
        "admissionPolicy.registries": ["registry.example.com/"],
        "admissionPolicy.requireDigest": True,
        "watchNamespaces": [namespace],
    }
    found = [item for item in render(None, "--namespace", namespace, **policy) if "Validating" in item["kind"]]
    assert len(found) == 2
    apiserver.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(found))
    url = f"/apis/instructpt.dev/v1alpha1/namespaces/{namespace}/corpora?dryRun=All"
    digest = f"@sha256:{'a' * 64}"
    try:
        message = _until_refused(apiserver, url, corpus("bad", serviceAccountName="admin"))
        assert "spec.podTemplate.serviceAccountName must be one of: default, trainer" in message
        for template, part in [
            ({"image": f"elsewhere.example.com/x{digest}"}, "must start with one of: registry.example.com/"),
            ({"image": "registry.example.com/x:latest"}, "must be given by digest"),
        ]:
            status, answer = apiserver.request("POST", url, corpus("bad", **template))
            assert status == 422, answer
            assert part in answer["message"]
        fine = [
            {},
            {"serviceAccountName": "trainer", "image": f"registry.example.com/x{digest}"},
            {"labels": {"a": "b"}},
        ]
        for template in fine:
            status, answer = apiserver.request("POST", url, corpus("good", **template))
            assert status == 201, answer
        name = found[0]["metadata"]["name"]
        policy_now = json.loads(apiserver.kubectl("get", "validatingadmissionpolicy", name, "-o", "json"))
        assert policy_now.get("status", {}).get("typeChecking", {}).get("expressionWarnings", []) == []
    finally:
        apiserver.kubectl("delete", "-f", "-", input=yaml.safe_dump_all(found))


def test_an_admission_policy_leaves_alone_what_was_there_before_it(
    apiserver: ApiServer, namespace: str, render: charts.Render
) -> None:
    """It can be suspended, deleted, and finished by the operator; only a template that changes is judged."""
    policy = {
        "admissionPolicy.enabled": True,
        "admissionPolicy.registries": ["registry.example.com/"],
        "watchNamespaces": [namespace],
        "fullnameOverride": namespace[:40],
    }
    everything = render(None, "--namespace", namespace, **policy)
    found = [item for item in everything if "Validating" in item["kind"]]
    roles = [item for item in everything if item["kind"] in {"Role", "RoleBinding"}]
    base = f"/apis/instructpt.dev/v1alpha1/namespaces/{namespace}/corpora"
    old = {"image": "elsewhere.example.com/x:1"}
    held = corpus("held", **old)
    held["metadata"]["finalizers"] = ["example.com/hold"]
    for obj in (corpus("old", **old), held):
        assert apiserver.request("POST", base, obj)[0] == 201
    apiserver.kubectl("apply", "-f", "-", input=yaml.safe_dump_all([*roles, *found]))
    try:
        _until_refused(apiserver, f"{base}?dryRun=All", corpus("bad", **old))

        def patch(name: str, body: dict[str, Any]) -> int:
            content = "application/merge-patch+json"
            return apiserver.request("PATCH", f"{base}/{name}", body, content_type=content)[0]

        assert patch("old", {"spec": {"suspend": False}}) == 200
        assert patch("old", {"metadata": {"labels": {"a": "b"}}}) == 200
        assert patch("old", {"spec": {"podTemplate": {"labels": {"a": "b"}}}}) == 422
        assert patch("old", {"spec": {"podTemplate": {"image": "registry.example.com/x:1"}}}) == 200
        assert patch("old", {"spec": {"podTemplate": {"image": "elsewhere.example.com/x:1"}}}) == 422
        assert patch("old", {"spec": {"podTemplate": None}}) == 200
        # While it is being deleted everything is let through: its finalizer must be removable.
        assert apiserver.request("DELETE", f"{base}/held")[0] == 200
        assert patch("held", {"metadata": {"finalizers": None}}) == 200
        assert apiserver.request("GET", f"{base}/held")[0] == 404
        # A child has the template of its pipeline, which was judged or was there before.
        account = f"--as=system:serviceaccount:{namespace}:{namespace[:40]}"
        text = json.dumps(corpus("child", **old))
        assert "created" in apiserver.kubectl("create", "-f", "-", f"-n={namespace}", account, input=text)
        with pytest.raises(KubectlError, match="must start with one of"):
            apiserver.kubectl("create", "-f", "-", f"-n={namespace}", input=json.dumps(corpus("mine", **old)))
    finally:
        apiserver.kubectl("delete", "-f", "-", input=yaml.safe_dump_all(found))


def _until_refused(server: ApiServer, url: str, body: dict[str, Any]) -> str:
    """A new policy takes a moment to act; the message of the first refusal."""
    waiting = threading.Event()
    for _ in range(150):
        status, answer = server.request("POST", url, body)
        if status == 422:
            message: str = answer["message"]
            return message
        assert status == 201, answer
        waiting.wait(0.2)
    raise AssertionError("the policy never acted")
