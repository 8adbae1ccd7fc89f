"""What a worker is given beside its RunSpec: who it is, where it may scratch, how it reports, when to stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from instructpt.telemetry.progress import Progress


@dataclass(slots=True, kw_only=True)
class WorkerContext:
    """Surroundings of one worker process.

    Attributes:
        worker_id: Stable over restarts of the same local replica; the pod's name on a cluster.
        scratch: Folder of this worker alone, emptied by nobody else; holds caches and checkpoints being written.
        progress: Where live figures go; served at ``/progress`` and ``/metrics``.
        stop: Set on SIGTERM: finish or checkpoint, then leave.
        replica: Index of this worker among ``replicas``.
        leave: Ends the process at once; does nothing unless the command line says how.
    """

    worker_id: str
    scratch: Path
    progress: Progress = field(default_factory=Progress)
    stop: threading.Event = field(default_factory=threading.Event)
    replica: int = 0
    replicas: int = 1
    leave: Callable[[], None] = lambda: None
    is_loading: bool = False

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """While libraries load: that takes long, cannot be cut short and holds nothing that could be lost.

        A worker that is asked to stop meanwhile leaves at once instead of after its first look at ``stop``.
        """
        self.is_loading = True
        try:
            if self.stop.is_set():
                self.leave()
            yield
        finally:
            self.is_loading = False
