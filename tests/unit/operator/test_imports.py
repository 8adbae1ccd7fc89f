"""R19: the operator's process holds nothing that computes or speaks to storage."""

from __future__ import annotations

import subprocess
import sys

import operators

HEAVY = (
    "boto3",
    "botocore",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "pyarrow",
    "vllm",
    "deepspeed",
)
OURS = ("synthesis", "training", "evaluation", "cli", "storage", "corpus", "local")
"""Of our packages."""


def test_r19_operator_imports_no_s3_client_and_nothing_that_computes() -> None:
    code = "import sys, instructpt_operator.__main__; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=operators.environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "instructpt_operator.__main__" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert loaded.isdisjoint(f"instructpt.{name}" for name in OURS)
