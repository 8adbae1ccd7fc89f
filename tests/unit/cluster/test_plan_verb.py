from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def plan(file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "instructpt", "plan", str(ROOT / file), "--output", "kubernetes"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_plan_prints_the_objects_of_a_cluster_twice_alike() -> None:
    first, second = (plan("instructpt/recipes/general-500m.yaml") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    objects = list(yaml.safe_load_all(first.stdout))
    kinds = [o["kind"] for o in objects]
    assert kinds.count("TrainingJob") == 2
    assert (
        kinds.count("ConfigMap") == kinds.count("Job") == 4
    )  # inspection and the tuning set of one arm, each with its end
    assert all("ownerReferences" not in o["metadata"] for o in objects)
    assert "Not shown, since their inputs are not there yet: synthesis" in first.stderr


def test_an_object_that_waits_for_another_has_nothing_to_print_yet() -> None:
    done = plan("manifests/samples/synthesisjob.yaml")
    assert (done.returncode, done.stdout) == (0, "")
    assert "synthesis" in done.stderr


def test_seeing_objects_needs_no_kubernetes_client() -> None:
    code = (
        "import sys, instructpt.cluster.observe, instructpt.cluster.render; "
        "print([m for m in ('kubeflow', 'kubernetes', 'boto3', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
