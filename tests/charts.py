"""Renders the chart with a real helm, for tests."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cluster import binaries

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "instructpt"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
FULL = CHART / "ci" / "full-values.yaml"
NAMESPACED = CHART / "ci" / "namespaced-values.yaml"
MONITORS = tuple(
    part for kind in ("PodMonitor", "ServiceMonitor") for part in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")
)
"""Arguments that make helm believe in the Prometheus operator."""
Manifest = dict[str, Any]


def tool(name: str) -> ModuleType:
    """A module of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def helm_or_skip() -> Path:
    """The helm of the test bed, or the one on PATH."""
    found: Path | None = tool("manifests").helm()
    if found is None:
        pytest.skip(binaries.NO_GO)
    return found


class Render:
    """Renders the chart as the release ``instructpt`` in ``instructpt-system``."""

    def __init__(self, helm: Path) -> None:
        self.helm = helm
        self._tool = tool("manifests")
        self._seen: dict[tuple[str, ...], str] = {}

    def text(self, values: Path | None = None, *args: str, crds: bool = False, **keys: Any) -> str:
        """What helm prints; ``keys`` are paths of values."""
        given = [] if values is None else ["--values", str(values)]
        given += [part for key, value in keys.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
        return self.anew("--set", f"crds.enabled={str(crds).lower()}", *given, *args)

    def anew(self, *args: str, again: bool = False) -> str:
        """What helm prints for these arguments, which is asked for once unless ``again``."""
        if again or args not in self._seen:
            self._seen[args] = self._tool.render(self.helm, *args)
        return self._seen[args]

    def __call__(self, values: Path | None = None, *args: str, crds: bool = False, **keys: Any) -> list[Manifest]:
        """The rendered objects."""
        found: list[Manifest] = self._tool.objects(self.text(values, *args, crds=crds, **keys))
        return found


def only(found: list[Manifest], kind: str, ending: str = "") -> Manifest:
    """The one object of a kind whose name ends so."""
    (match,) = [item for item in found if item["kind"] == kind and item["metadata"]["name"].endswith(ending)]
    return match


def is_extra(item: Manifest) -> bool:
    """Whether it is one of ``extraObjects`` in ci/full-values.yaml."""
    return item["kind"] == "ConfigMap" and "config.yaml" not in item["data"]


def settings(found: list[Manifest]) -> Manifest:
    """The operator's settings file."""
    (text,) = [item["data"]["config.yaml"] for item in found if item["kind"] == "ConfigMap" and not is_extra(item)]
    config: Manifest = yaml.safe_load(text)
    return config


def pod_templates(found: list[Manifest]) -> Iterator[Manifest]:
    """Of the operator and of the check."""
    return (item["spec"]["template"] for item in found if item["kind"] in {"Deployment", "Job"})
