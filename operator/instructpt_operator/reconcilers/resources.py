"""JSON -> typed object, leniently: what the API server has accepted, with a status of any version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from instructpt.api.v1alpha1 import KINDS
from instructpt.plan.planner import AnyResource


def parse(raw: Mapping[str, Any]) -> AnyResource:
    """An object of one of our kinds.

    A status that this version cannot read counts as none: everything in it can be found again.

    Raises:
        ValidationError: The spec breaks a rule that the API server did not know.
    """
    model = KINDS[raw["kind"]]
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        if all(e["loc"][:1] == ("status",) for e in error.errors()):
            return model.model_validate({k: v for k, v in raw.items() if k != "status"})
        raise
