from __future__ import annotations

import logging
from pathlib import Path

import pytest

from instructpt.telemetry.context import WorkerContext
from instructpt.training import entry

pytestmark = pytest.mark.deepspeed


def ctx(folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    return WorkerContext(worker_id="w", scratch=folder)


def test_train_and_export(train_spec, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    spec = train_spec()
    entry.run(spec, ctx(tmp_path / "s"))
    result = entry.finalize(spec, ctx(tmp_path / "s"))
    assert result.missing == 0
    print(result)
    print([str(p) for p in sorted((tmp_path/"out").rglob("*"))])
