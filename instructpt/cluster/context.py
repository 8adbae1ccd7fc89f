"""What rendering needs beside the plan: the owner, the images, the policy of the object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instructpt.api.common import RunPolicy
from instructpt.api.runspec import StageKind

Role = str
"""``operator`` (no torch: inspection, finalize), ``synthesizer`` or ``trainer``."""

METRICS_PORT = 9100
RUNSPEC_FOLDER = "/etc/instructpt/runspec"
RUNSPEC_FILE = "runspec.json"
SECRETS_FOLDER = "/var/run/instructpt/secrets"
TERMINATION_LOG = "/dev/termination-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The object that rendered objects belong to; ``uid`` is empty where there is none yet (plan on a laptop)."""

    api_version: str
    kind: str
    name: str
    namespace: str
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Image by role and accelerator, as in the chart's ``images.{operator,synthesizer,trainer}.{cuda,cpu}``.

    Attributes:
        by_role: ``(role, accelerator)`` -> image, accelerator ``cuda`` or ``cpu``; the operator has ``cpu`` alone.
        pull_policy: Unless the object's ``podTemplate.imagePullPolicy`` says otherwise.
    """

    by_role: Mapping[tuple[Role, str], str]
    pull_policy: str = "IfNotPresent"


DEFAULT_IMAGES = Images(
    by_role={
        ("operator", "cpu"): "instructpt/operator:0.1.0",
        ("synthesizer", "cuda"): "instructpt/synthesizer:0.1.0",
        ("synthesizer", "cpu"): "instructpt/synthesizer:0.1.0-cpu",
        ("trainer", "cuda"): "instructpt/trainer:0.1.0",
        ("trainer", "cpu"): "instructpt/trainer:0.1.0-cpu",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderContext:
    """Everything but stage, task and attempt that decides how an object looks.

    Attributes:
        policy: The owner's run policy: podTemplate, queueName and so on.
        launcher: Name of the launcher for training.
    """

    owner: Owner
    policy: RunPolicy
    images: Images = field(default=DEFAULT_IMAGES)
    launcher: str = "pytorchjob"


ROLE: Mapping[StageKind, Role] = {
    "inspect": "operator",
    "synthesize": "synthesizer",
    "tokenizer": "trainer",
    "pack": "trainer",
    "train": "trainer",
    "evaluate": "trainer",
    "report": "trainer",
}
"""Role that does the work of a stage; ``finalize`` runs with the role that :data:`FINALIZE_ROLE` names."""

FINALIZE_ROLE: Mapping[StageKind, Role] = {
    "inspect": "operator",
    "synthesize": "operator",
    "tokenizer": "operator",
    "pack": "trainer",  # the tokenizer is part of what it checks
    "train": "operator",
    "evaluate": "trainer",  # metrics may need the models' tokenizers
    "report": "trainer",  # draws plots: the operator's image has no matplotlib
}
