"""The types of objects that the operator reads and writes."""

from __future__ import annotations

from instructpt.api.base import API_VERSION
from instructpt.api.v1alpha1 import KINDS
from instructpt.cluster.launchers import LAUNCHERS
from instructpt_operator.runtime.client import ResourceType

JOBS = ResourceType(api_version="batch/v1", kind="Job", plural="jobs")
CONFIG_MAPS = ResourceType(api_version="v1", kind="ConfigMap", plural="configmaps")
OURS = {kind: ResourceType(api_version=API_VERSION, kind=kind, plural=model.plural) for kind, model in KINDS.items()}
"""Our five kinds."""


def launcher_type(name: str) -> ResourceType:
    """The type of a launcher's objects."""
    chosen = LAUNCHERS[name]
    return ResourceType(api_version=chosen.api_version, kind=chosen.kind, plural=chosen.plural)
