from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from instructpt.api.presets import PRESETS
from instructpt.cli.app import app

RECIPES = Path(__file__).resolve().parents[3] / "instructpt" / "recipes"


def run(*args: str, code: int = 0, columns: int = 200) -> str:
    done = CliRunner().invoke(app, list(args), env={"COLUMNS": str(columns)})
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("preset", PRESETS)
def test_explain_prints_what_a_preset_stands_for(preset: str) -> None:
    init = yaml.safe_load(run("explain", f"preset.{preset}"))["init"]
    assert init.get("config", init.get("shape")) == PRESETS[preset]
    assert f"{preset}: " in run("explain", "preset")


def plan(tmp_path: Path, *args: str, **training: Any) -> str:
    spec = yaml.safe_load((RECIPES / "general-500m.yaml").read_text())
    spec["spec"]["corpus"] = {"uri": str(tmp_path / "*.jsonl")}
    spec["spec"]["training"] |= training
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(spec))
    return run("plan", str(file), *args)


def test_plan_of_a_cluster_says_whether_it_fits_the_gpus_and_how_long_it_takes(tmp_path: Path) -> None:
    text = plan(tmp_path, "--gpu", "h100-80gb", "--mfu", "0.5")
    assert "Preset 500m: {config: {model_type: llama" in text
    assert "a GPU of 64 h100-80gb" in text
    assert "GPU-hours at an MFU of 50 %" in text
    data = json.loads(plan(tmp_path, "--gpu", "l4", "-o", "json"))
    rows = {row["step"]: row for row in data["estimates"]}
    assert rows["train-instruct"]["fits"] is False
    assert rows["train-instruct"]["advice"]
    assert data["presets"] == {"500m": {"config": PRESETS["500m"]}}


def test_the_recipes_of_the_paper_are_mixed_as_it_says() -> None:
    general, continual = (
        yaml.safe_load((RECIPES / f"{n}.yaml").read_text())["spec"] for n in ("general-500m", "continual-8b")
    )
    assert general["synthesis"]["convert"] == 0.2
    assert general["training"]["mixture"][1]["repeats"] == 4
    assert continual["synthesis"]["convert"] == 1.0
    assert [m.get("weight") for m in continual["training"]["mixture"]] == [1, 1]
    assert continual["training"]["mixture"][1]["format"] == "instructions"


def test_no_cell_of_the_table_is_cut_however_narrow_the_terminal(tmp_path: Path) -> None:
    plan(tmp_path)
    lines = run("plan", str(tmp_path / "p.yaml"), columns=40).splitlines()
    names = ["step", "shards", "documents", "tokens", "steps", "params", "memory", "fits", "time", "grace"]
    assert names in [line.split() for line in lines]
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)
