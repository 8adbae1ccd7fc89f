"""From the version before this one to this one and back to nothing: real helm, real API server, one object all along.

The version before is this chart with a lower number and definitions that lack a field which is new here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apiserver as control_plane
import charts
import pytest
import yaml
from apiserver import ApiServer
from cluster import binaries
from releases import helm

pytestmark = pytest.mark.cluster

NAMESPACE = "instructpt-system"
FIELD = "resources"
"""Of podTemplate: optional, and taken away from the version before."""
BEFORE, NOW = "0.0.9", yaml.safe_load((charts.CHART / "Chart.yaml").read_text())["version"]
CORPORA = "/apis/instructpt.dev/v1alpha1/namespaces/team-a/corpora"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/corpora.instructpt.dev"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A control plane of its own: nothing of ours is there yet."""
    charts.helm_or_skip()
    if not binaries.is_ready(("helm", *control_plane.NEEDED)):
        pytest.skip(binaries.NO_GO)
    with control_plane.api_server(tmp_path_factory.mktemp("upgrade"), controllers=True) as started:
        for name in (NAMESPACE, "team-a", "elsewhere"):
            assert started.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})[0] == 201
        yield started


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of the version before."""
    chart = tmp_path_factory.mktemp("before") / "instructpt"
    shutil.copytree(charts.CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": BEFORE, "appVersion": BEFORE}))
    for path in (chart / "files" / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        del spec["properties"]["podTemplate"]["properties"][FIELD]
        path.write_text(yaml.safe_dump(crd, sort_keys=False))
    return chart


def corpus(**template: Any) -> dict[str, Any]:
    spec = {"suspend": True, "uri": "s3://lab/*.jsonl", "storage": {"uri": "s3://lab/out"}}
    if template:
        spec["podTemplate"] = template
    return {"apiVersion": "instructpt.dev/v1alpha1", "kind": "Corpus", "metadata": {"name": "kept"}, "spec": spec}


def released(server: ApiServer) -> tuple[str, str, str]:
    """(name, namespace, chart) that the definition of Corpus belongs to."""
    meta = server.request("GET", CRD)[1]["metadata"]
    notes = meta["annotations"]
    return (
        notes["meta.helm.sh/release-name"],
        notes["meta.helm.sh/release-namespace"],
        meta["labels"]["helm.sh/chart"].removeprefix("instructpt-"),
    )


def test_f14_an_object_lives_through_upgrade_uninstall_and_another_install(server: ApiServer, before: Path) -> None:
    where, new = ("--namespace", NAMESPACE), {FIELD: {"requests": {"memory": "1Gi"}}}

    helm(server, "install", "instructpt", str(before), *where)
    assert released(server) == ("instructpt", NAMESPACE, BEFORE)
    strict = f"{CORPORA}?fieldValidation=Strict"
    status, answer = server.request("POST", strict, corpus(**new))
    assert (status, "unknown field" in answer["message"]) == (400, True)
    status, made = server.request("POST", strict, corpus())
    assert status == 201
    uid = made["metadata"]["uid"]

    def kept() -> dict[str, Any]:
        status, found = server.request("GET", f"{CORPORA}/kept")
        assert status == 200
        assert found["metadata"]["uid"] == uid
        assert "deletionTimestamp" not in found["metadata"]
        return found

    helm(server, "upgrade", "instructpt", str(charts.CHART), *where)
    assert released(server) == ("instructpt", NAMESPACE, NOW)
    assert kept()["metadata"]["generation"] == 1, "the upgrade is no edit"
    url = f"{CORPORA}/kept?fieldValidation=Strict"
    status, answer = server.request("PATCH", url, {"spec": {"podTemplate": new}}, content_type=MERGE)
    assert status == 200, answer
    assert kept()["spec"]["podTemplate"] == new

    helm(server, "uninstall", "instructpt", *where)
    assert kept()["spec"]["podTemplate"] == new
    assert "deletionTimestamp" not in server.request("GET", CRD)[1]["metadata"]

    # Under its name, in its namespace, a release takes over what it left.
    helm(server, "install", "instructpt", str(charts.CHART), *where)
    assert released(server) == ("instructpt", NAMESPACE, NOW)
    assert kept()["spec"]["podTemplate"] == new

    # Under another one it says whose the definitions are, unless it is told to take them.
    helm(server, "uninstall", "instructpt", *where)
    elsewhere = ("--namespace", "elsewhere")
    with pytest.raises(AssertionError, match="--take-ownership|invalid ownership metadata"):
        helm(server, "install", "other", str(charts.CHART), *elsewhere)
    helm(server, "install", "other", str(charts.CHART), *elsewhere, "--take-ownership")
    assert released(server) == ("other", "elsewhere", NOW)
    assert kept()["spec"]["podTemplate"] == new

    helm(server, "uninstall", "other", *elsewhere)
    kept()
