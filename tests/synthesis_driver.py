"""A synthesis worker as a process, which can be told to die by SIGKILL at its n-th write.

Usage: synthesis_driver.py RUNSPEC WORKER SCRATCH [WRITE before|after]
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from faults import FaultyStore

from instructpt import storage
from instructpt.api.runspec import RunSpec
from instructpt.synthesis import worker
from instructpt.telemetry.context import WorkerContext


class DeadlyStore(FaultyStore):
    """Really kills the process where the other one would simulate it."""

    def _fault(self, number: int, moment: str, verb: str) -> None:
        if moment == self._moment and number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    path, worker_id, scratch, *fault = sys.argv[1:]
    spec = RunSpec.model_validate_json(Path(path).read_text())
    if fault:
        open_store, output = storage.open_store, spec.output.uri

        def deadly(uri: str, **kwargs: Any) -> Any:
            inner = open_store(uri, **kwargs)
            return DeadlyStore(inner, kill_at=int(fault[0]), moment=fault[1]) if uri == output else inner

        worker.open_store = deadly
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    context = WorkerContext(worker_id=worker_id, scratch=Path(scratch), stop=stop)
    print("started", flush=True)
    worker.run(spec, context)


if __name__ == "__main__":
    main()
