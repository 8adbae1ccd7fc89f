"""A worker as a process of its own: ``worker_process.py RUNSPEC SCRATCH [kill=STEP|any] [term=STEP]``.

Ends with 0, 75 after a checkpoint on request, or is killed by itself with signal 9 when that step is reported; ``any``
is the first one reported.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from instructpt.api.runspec import RunSpec
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext
from instructpt.telemetry.logs import configure_logging
from instructpt.telemetry.progress import Progress


class Watched(Progress):
    """Acts when a step is reported, so that the moment is the same every time."""

    def __init__(self, spec: RunSpec, kill: str | None, term: int | None) -> None:
        super().__init__()
        self._store = open_store(spec.output.uri)
        self._kill, self._term = kill, term
        self.ctx: WorkerContext | None = None

    def update(self, **figures) -> None:
        super().update(**figures)
        step = figures.get("done")
        if step is not None and self._kill in ("any", str(step)):
            while not self._store.exists("checkpoints/LATEST"):
                time.sleep(0.01)  # the checkpoint before is written by another thread
            os.kill(os.getpid(), signal.SIGKILL)
        if self._term is not None and step is not None and step >= self._term:
            self.ctx.stop.set()


def main() -> int:
    configure_logging("INFO")
    spec = RunSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    actions = dict(argument.split("=") for argument in sys.argv[3:])
    progress = Watched(spec, actions.get("kill"), int(actions["term"]) if "term" in actions else None)
    scratch = Path(sys.argv[2])
    scratch.mkdir(parents=True, exist_ok=True)
    ctx = WorkerContext(worker_id="w", scratch=scratch, progress=progress)
    progress.ctx = ctx
    from instructpt.training import entry

    try:
        entry.run(spec, ctx)
    except entry.Preempted as error:
        print(error, file=sys.stderr)
        return 75
    print(entry.finalize(spec, ctx).to_wire())
    return 0


if __name__ == "__main__":
    sys.exit(main())
