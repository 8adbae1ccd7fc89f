"""Defaults and presets that stand behind the keys of runs under way.

A key does not count what is as by default, and a preset is expanded by the code that plans. So neither may change its
meaning: a run that is under way when the operator is upgraded would go on with something else under the same name. What
must change gets a new name. ``INSTRUCTPT_WRITE_GOLDEN=1`` writes the file anew, after an addition.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from instructpt.api.presets import PRESETS, architecture
from instructpt.api.runspec import RunSpec

GOLDEN = Path(__file__).parent / "golden" / "frozen-defaults.json"
GONE = "a default or preset is gone or means something else: give what is new another name"


def frozen() -> dict[str, Any]:
    """Every default of a RunSpec's parts, by model and field, and every preset."""
    definitions = RunSpec.model_json_schema(by_alias=True)["$defs"]
    defaults = {
        f"{model}.{name}": field["default"]
        for model, schema in definitions.items()
        for name, field in schema.get("properties", {}).items()
        if "default" in field
    }
    return {"defaults": defaults, "presets": {name: architecture(name, None) for name in PRESETS}}


def test_r22_defaults_and_presets_keep_their_meaning() -> None:
    now = json.loads(json.dumps(frozen(), sort_keys=True))
    if os.environ.get("INSTRUCTPT_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    kept = json.loads(GOLDEN.read_text())
    for part, entries in kept.items():
        for name, value in entries.items():
            assert now[part].get(name) == value, f"{part} {name}: {GONE}"
    assert now == kept, "new ones: INSTRUCTPT_WRITE_GOLDEN=1 pytest tests/contract/test_frozen_defaults.py"
