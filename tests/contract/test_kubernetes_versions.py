"""What the chart and the operator make, against the schemas of every Kubernetes that the chart claims to run on.

Only the newest of them runs in the tests; the schemas of all of them come with a package, so nothing is fetched.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import charts
import kubernetes_validate
import pytest
import rendering
import yaml
from charts import CHART, FULL, MONITORS, NAMESPACED, Render

MINORS = range(31, 37)
EVERY_MINOR = pytest.mark.parametrize("minor", MINORS)
FOREIGN = ("instructpt.dev/", "kubeflow.org/", "monitoring.coreos.com/")
"""Kinds that are no part of Kubernetes."""


def refused(obj: dict[str, Any], minor: int) -> str:
    """What is wrong with an object, unknown fields included; nothing of one that fits."""
    try:
        assert kubernetes_validate.validate(obj, f"1.{minor}", strict=True) == f"1.{minor}"
    except kubernetes_validate.ValidationError as error:
        return f"{obj['kind']} {obj['metadata']['name']}: {error}"
    return ""


def workloads() -> Iterator[dict[str, Any]]:
    """Jobs and ConfigMaps of every stage."""
    for resource in (
        rendering.corpus(),
        rendering.synthesis(podTemplate=rendering.POD_TEMPLATE),
        rendering.training(gpusPerNode=8),
        rendering.evaluation(),
    ):
        yield from rendering.everything(resource)


def test_the_range_is_the_one_that_the_chart_claims() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">=1.{MINORS[0]}.0-0"
    assert f"1.{MINORS[-1]}.0" == charts.tool("manifests").KUBE_VERSION


@EVERY_MINOR
@pytest.mark.parametrize("values", [None, FULL, NAMESPACED], ids=lambda path: path.stem if path else "default")
def test_the_chart_fits_every_version(render: Render, minor: int, values: Path | None) -> None:
    found = [item for item in render(values, *MONITORS, crds=True) if not item["apiVersion"].startswith(FOREIGN)]
    assert len(found) > 15
    assert [said for item in found if (said := refused(item, minor))] == []


@EVERY_MINOR
def test_workloads_fit_every_version(minor: int) -> None:
    found = [item for item in workloads() if not item["apiVersion"].startswith(FOREIGN)]
    assert {item["kind"] for item in found} == {"ConfigMap", "Job"}
    assert [said for item in found if (said := refused(item, minor))] == []


@EVERY_MINOR
def test_helm_renders_and_lints_for_every_version(helm: Path, minor: int) -> None:
    for command in (("lint", "--strict", str(CHART)), ("template", "instructpt", str(CHART))):
        done = subprocess.run(
            [str(helm), *command, "--kube-version", f"1.{minor}", "--values", str(FULL)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_field_and_a_wrong_type_are_noticed() -> None:
    config, work = rendering.rendered(rendering.corpus(), "corpus")
    assert "datas" in refused({**config, "datas": {}}, MINORS[0])
    work["spec"]["parallelism"] = "two"
    assert "two" in refused(work, MINORS[0])
