"""What a user or the chart may correct of a child that does not start: its podTemplate and its images.

A Job's template cannot change, so a child that is stuck gives way to one made anew. One that runs is left alone: there
the correction holds from the next attempt on.
"""

from __future__ import annotations

import hashlib
import json

from instructpt.plan.naming import ANNOTATION_TEMPLATE
from instructpt_operator.actions import Object
from instructpt_operator.reconcilers.visit import Visit


def marked(visit: Visit, child: Object) -> Object:
    """The child with the hash of what it is made with."""
    meta = child["metadata"]
    annotations = {**meta.get("annotations", {}), ANNOTATION_TEMPLATE: _fingerprint(visit)}
    return {**child, "metadata": {**meta, "annotations": annotations}}


def is_corrected(visit: Visit, child: Object) -> bool:
    """Whether podTemplate or images are others now than those that the child was made with."""
    made_with = child["metadata"].get("annotations", {}).get(ANNOTATION_TEMPLATE)
    return made_with is not None and made_with != _fingerprint(visit)


def _fingerprint(visit: Visit) -> str:
    template, images = visit.resource.spec.pod_template, visit.config.images
    parts = [
        None if template is None else template.to_wire(),
        sorted([*key, image] for key, image in images.by_role.items()),
        images.pull_policy,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
