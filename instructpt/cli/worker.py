"""``instructpt worker VERB``: one RunSpec file in, storage written, an exit code that says what a retry is good for.

Exit codes: 0 done; 42 this worker cannot work; 43 bad configuration, credentials or corpus; 75 stopped by
SIGTERM with everything kept; 1 otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import platform
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from instructpt.api.runspec import MAX_RESULT_BYTES, RunSpec, StageKind, StageResult, hash_of
from instructpt.api.version import VERSION
from instructpt.errors import ConfigError, CorpusError, EnvironmentNotReadyError, InstructPTError, PlanError
from instructpt.local.folder import write_atomically
from instructpt.telemetry.context import WorkerContext
from instructpt.telemetry.logs import configure_logging
from instructpt.telemetry.server import serve
from instructpt.telemetry.surroundings import settle

logger = logging.getLogger("instructpt.worker")

EXIT_FAILED = 1
EXIT_CANNOT_WORK = 42
EXIT_CONFIG = 43
EXIT_PREEMPTED = 75

MODULES: dict[StageKind, str] = {
    "inspect": "instructpt.corpus.inspect",
    "synthesize": "instructpt.synthesis.worker",
    "tokenizer": "instructpt.training.prepare",
    "pack": "instructpt.training.prepare",
    "train": "instructpt.training.entry",
    "evaluate": "instructpt.evaluation.worker",
    "report": "instructpt.evaluation.report",
}


def run_worker(verb: str, path: Path, expected_hash: str) -> int:
    """Do what the RunSpec says and return the exit code."""
    configure_logging(os.environ.get("INSTRUCTPT_LOG_LEVEL", "INFO"))
    _end_with_parent()
    ctx = _context()
    kind = ""
    try:
        spec = read_runspec(verb, path, expected_hash)
        kind = spec.owner_kind
        ctx.scratch.mkdir(parents=True, exist_ok=True)
        settle(ctx.scratch)
        with _telemetry(ctx, verb):
            result = _dispatch(spec, ctx)
        # A result, and a training that returns, are whole; other verbs return early when they are asked to leave.
        if ctx.stop.is_set() and result is None and verb != "train":
            logger.info("stopped by a signal, committed work is kept")
            return EXIT_PREEMPTED
    except InstructPTError as error:
        return _failed(error, ctx, kind)
    except MemoryError as error:
        return _failed(EnvironmentNotReadyError("out of memory", fix="lower the batch or raise the memory").with_traceback(error.__traceback__), ctx)  # fmt: skip  # noqa: E501
    except Exception as error:
        logger.exception("unexpected failure")
        said = {"type": type(error).__name__, "message": f"{type(error).__name__}: {error}"}
        _leave({"error": said, **_how_far(ctx)})
        return EXIT_FAILED
    if result is not None:
        _leave(result.to_wire())
    elif verb == "train":
        _leave(_how_far(ctx))
    return 0


def read_runspec(verb: str, path: Path, expected_hash: str) -> RunSpec:
    """The RunSpec of a file, if it is the one that was meant.

    Raises:
        ConfigError: The file is missing, not a RunSpec, or has another hash or verb than argv says.
    """
    try:
        data = path.read_bytes()
        # Of the bytes: a worker of a later version, which knows more fields, reads what an earlier one wrote.
        found = hash_of(data)
        if found != expected_hash:
            raise ConfigError(
                f"RunSpec {path} has hash {found}, argv says {expected_hash}", fix="start the worker from a fresh plan"
            )
        spec = RunSpec.model_validate_json(data)
    except (OSError, ValueError) as error:
        raise ConfigError(f"RunSpec {path} cannot be read: {error}") from error
    if spec.verb != verb:
        raise ConfigError(f"RunSpec {path} is for verb {spec.verb}, argv says {verb}")
    return spec


def _dispatch(spec: RunSpec, ctx: WorkerContext) -> StageResult | None:
    with ctx.loading():
        module: Any = importlib.import_module(MODULES[spec.stage])
    if spec.verb == "finalize":
        result: StageResult = module.finalize(spec, ctx)
        if result.missing == 0:
            _note_run(spec, ctx)
        return result
    module.run(spec, ctx)
    return None


def _note_run(spec: RunSpec, ctx: WorkerContext) -> None:
    """When and where the stage was finished, beside its manifest and in no digest."""
    from instructpt.corpus.manifest import RUN
    from instructpt.storage import open_store

    note = {
        "finishedAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "worker": ctx.worker_id,
        "owner": f"{spec.owner_kind}/{spec.owner_name}",
        "step": spec.step,
        "version": VERSION,
    }
    open_store(spec.output.uri, access=spec.output).put(RUN, json.dumps(note, indent=2).encode())


def _context() -> WorkerContext:
    environ = os.environ
    ctx = WorkerContext(
        worker_id=environ.get("INSTRUCTPT_WORKER_ID") or f"{os.uname().nodename}-{os.getpid()}",
        scratch=Path(environ.get("INSTRUCTPT_SCRATCH", "scratch")),
        replica=int(environ.get("INSTRUCTPT_REPLICA", environ.get("JOB_COMPLETION_INDEX", "0"))),
        replicas=int(environ.get("INSTRUCTPT_REPLICAS", "1")),
        leave=_leave_at_once,
    )

    def stop(number: int, frame: FrameType | None) -> None:
        ctx.stop.set()
        if ctx.is_loading:
            ctx.leave()

    signal.signal(signal.SIGTERM, stop)
    return ctx


@contextlib.contextmanager
def _telemetry(ctx: WorkerContext, verb: str) -> Any:
    port_file = os.environ.get("INSTRUCTPT_PORT_FILE")
    host = "127.0.0.1" if port_file else "0.0.0.0"  # noqa: S104 - in a pod the operator reads /progress
    port = 0 if port_file else int(os.environ.get("INSTRUCTPT_METRICS_PORT", "9100"))
    with serve(ctx.progress, verb, host=host, port=port) as bound:
        if port_file:
            write_atomically(Path(port_file), str(bound))
        yield


def _how_far(ctx: WorkerContext) -> dict[str, Any]:
    """What the worker had done when it ended, and its notes: a retry that gets no further has a fault of its own."""
    figures = ctx.progress.snapshot()
    if not figures["unit"]:
        return {}
    notes = {"notes": figures["notes"]} if figures["notes"] else {}
    return {"done": figures["done"], "unit": figures["unit"], **notes}


def _failed(error: InstructPTError, ctx: WorkerContext, kind: str = "") -> int:
    said = str(error)
    if kind == "Corpus":  # what is a section of a pipeline's spec is the whole spec there
        said = said.replace("spec.corpus.", "spec.")
    logger.error("%s", said)
    _leave(
        {
            "error": {
                "type": type(error).__name__,
                "message": said,
                "field": error.field,
                "retryable": error.retryable,
            },
            **_how_far(ctx),
        }
    )
    if isinstance(error, ConfigError | CorpusError | PlanError):
        return EXIT_CONFIG
    if isinstance(error, EnvironmentNotReadyError):
        return EXIT_CANNOT_WORK
    return EXIT_PREEMPTED if type(error).__name__ == "Preempted" else EXIT_FAILED


def _leave_at_once() -> None:
    # In a signal handler: whoever logs may hold a lock, and nothing is open that would have to be closed.
    os.write(sys.stderr.fileno(), b"stopped by a signal while loading: nothing was begun\n")
    os._exit(EXIT_PREEMPTED)


def _leave(message: dict[str, Any]) -> None:
    """Write the termination message; on a cluster the kubelet reads it from there."""
    text = fitted(message)
    path = Path(os.environ.get("INSTRUCTPT_TERMINATION_LOG", "/dev/termination-log"))
    if path.parent.exists() and os.access(path.parent if not path.exists() else path, os.W_OK):
        path.write_text(text, encoding="utf-8")
    else:
        print(text, file=sys.stdout)


def fitted(message: dict[str, Any]) -> str:
    """A termination message as JSON of at most 4096 bytes; what an error says is cut at its end until it fits.

    Raises:
        AssertionError: A result is larger, which its type excludes.
    """
    error = message.get("error")
    said = b"" if error is None else error["message"].encode("utf-8", "replace")
    while True:
        if error is not None:
            error = {**error, "message": said.decode("utf-8", "ignore")}
            message = {**message, "error": error}
        text = json.dumps(message, ensure_ascii=False)
        # A character may take one byte or six here (an escaped control character), so the cut is found by trying.
        over = len(text.encode("utf-8", "replace")) - MAX_RESULT_BYTES
        if over <= 0:
            return text
        if not said:
            raise AssertionError(f"termination message of {len(text)} characters is above {MAX_RESULT_BYTES} bytes")
        said = said[: max(0, len(said) - max(1, over // 6))]


def _end_with_parent() -> None:
    """End when the executor that started this worker is gone, so that two lives of a run never overlap."""
    parent = int(os.environ.get("INSTRUCTPT_PARENT_PID", "0"))
    if parent == 0:
        return

    def watch() -> None:
        waiter = threading.Event()
        while os.getppid() == parent:
            waiter.wait(0.5)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
