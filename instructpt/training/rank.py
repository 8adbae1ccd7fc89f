"""``python -m instructpt.training.rank FOLDER``: one rank under torchrun; internal, started by launch.

The folder holds ``runspec.json`` and ``workspace.json``. A file ``stop`` in it asks the ranks to leave; rank 0 writes
``progress.json``; a rank that starts leaves ``met`` (all nodes are there), and ``stepping`` with its first step; one
that fails leaves the cause in ``outcome.json``, because torchrun itself always ends with 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from instructpt.api.runspec import RunSpec
from instructpt.errors import InstructPTError
from instructpt.telemetry.logs import configure_logging
from instructpt.telemetry.progress import Progress
from instructpt.training.workspace import Workspace

RUNSPEC, WORKSPACE, STOP, MET, STEPPING, PROGRESS, OUTCOME = (
    "runspec.json", "workspace.json", "stop", "met", "stepping", "progress.json", "outcome.json"
)  # fmt: skip
PARENT = "INSTRUCTPT_LAUNCHER_PID"
_SECONDS = 0.5
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that two lives of a run never overlap."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(folder: Path) -> int:
    """Train as one rank; 0 at the end, else 1 with the cause in ``outcome.json``."""
    configure_logging(os.environ.get("INSTRUCTPT_LOG_LEVEL", "INFO"))
    end_with_parent()
    (folder / MET).touch()
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress, ended = Progress(), threading.Event()
    _start(lambda: _watch_parent(ended))
    reporting: threading.Thread | None = None
    try:
        from instructpt.training.engine import Ranks
        from instructpt.training.loop import Surroundings, train

        ranks = Ranks.from_environment()
        if ranks.rank == 0:
            reporting = _start(lambda: _report(folder / PROGRESS, progress, ended))
        spec = RunSpec.model_validate_json((folder / RUNSPEC).read_bytes())
        workspace = Workspace.from_json((folder / WORKSPACE).read_text(encoding="utf-8"))

        def stop() -> bool:
            """Asked for at every step."""
            (folder / STEPPING).touch()
            return asked.is_set() or (folder / STOP).exists()

        train(spec, workspace, Surroundings(ranks=ranks, stop=stop, progress=progress))
    except InstructPTError as error:
        _leave(folder, {"type": type(error).__name__, "message": error.message, "field": error.field,
                        "value": error.value, "fix": error.fix, "retryable": error.retryable})  # fmt: skip
        return 1
    except BaseException as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        if _of_a_peer(error):
            message = f"a rank, of this node or another, is gone or does not answer: {message}"
            _leave(folder, {"type": "PeerLostError", "message": message, "retryable": True})
        else:  # whoever retries starts from the checkpoint
            _leave(folder, {"type": "TrainingError", "message": message, "retryable": True})
        return 1
    finally:
        ended.set()
        if reporting is not None:
            reporting.join(_SECONDS * 10)
    return 0


def _of_a_peer(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors that name its source files."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _start(what: Any) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def _watch_parent(ended: threading.Event) -> None:
    """End when the worker that launched torchrun is gone; the kernel's signal knows of direct parents alone."""
    parent = int(os.environ.get(PARENT, "0"))
    while parent and not ended.wait(_SECONDS):
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)


def _report(path: Path, progress: Progress, ended: threading.Event) -> None:
    while True:
        last = ended.wait(_SECONDS)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(progress.snapshot()), encoding="utf-8")
        temporary.replace(path)
        if last:
            return


def _leave(folder: Path, outcome: dict[str, Any]) -> None:
    """Keep the first cause: what other ranks say afterwards follows from it."""
    with contextlib.suppress(FileExistsError), (folder / OUTCOME).open("x", encoding="utf-8") as stream:
        stream.write(json.dumps(outcome, default=str))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written. Threads of the collectives may still run, and tearing the interpreter down under them can
    # abort the process: a training that is done would count as killed.
    os._exit(code)
