"""Several ranks: torchrun as a child, watched, asked to leave by a file, its cause of failure read back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from instructpt import errors
from instructpt.api.runspec import RunSpec, TrainRun
from instructpt.errors import EnvironmentNotReadyError, InstructPTError, TrainingError
from instructpt.telemetry.context import WorkerContext
from instructpt.training.errors import Preempted
from instructpt.training.rank import OUTCOME, PARENT, PROGRESS, RUNSPEC, STOP, WORKSPACE, end_with_parent
from instructpt.training.workspace import Workspace

log = logging.getLogger(__name__)

_SECONDS = 0.5


def launch(spec: RunSpec, workspace: Workspace, ctx: WorkerContext) -> None:
    """Run the ranks of this node to their end.

    On SIGTERM (``ctx.stop``) the ranks are asked to leave and given all the time they need for a checkpoint: whoever
    sent the signal decides when patience ends.

    Raises:
        InstructPTError: What a rank failed with; :class:`Preempted` after a checkpoint on request.
    """
    assert spec.train is not None
    folder = ctx.scratch / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / RUNSPEC).write_text(spec.to_json(), encoding="utf-8")
    (folder / WORKSPACE).write_text(workspace.to_json(), encoding="utf-8")
    # In a session of its own: a signal to the worker's group would make torchrun kill its ranks after 30 s.
    child = subprocess.Popen(
        [*command(spec.train, ctx.replica), str(folder)],
        stdin=subprocess.DEVNULL,
        env=environment(spec.train),
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        code = _watch(child, folder, ctx)
    finally:
        if child.poll() is None:
            child.kill()  # the ranks notice by themselves that torchrun and this worker are gone
            child.wait()
    if code != 0:
        raise _cause(folder, code)


def command(section: TrainRun, node: int) -> list[str]:
    """The torchrun command of one node, without the folder.

    Raises:
        EnvironmentNotReadyError: There are several nodes, and the environment does not name the first.
    """
    local = section.gpus_per_node or section.processes_per_node
    out = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0", f"--nproc_per_node={local}"]
    if section.nodes == 1:
        out += ["--standalone", "--local_addr=127.0.0.1"]
    else:
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not address or not port:
            raise EnvironmentNotReadyError(
                f"training on {section.nodes} nodes needs MASTER_ADDR and MASTER_PORT in the environment",
                field="nodes",
                value=section.nodes,
                fix="run it as a PyTorchJob, which sets them, or use nodes: 1 on one machine",
            )
        rank = os.environ.get("RANK", str(node))
        out += [f"--nnodes={section.nodes}", f"--node_rank={rank}", f"--master_addr={address}", f"--master_port={port}"]
    return [*out, "-m", "instructpt.training.rank"]


def environment(section: TrainRun) -> dict[str, str]:
    """Of torchrun: without the ranks of a launcher above, with a thread count for each rank."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in dropped}
    cores = int(os.environ.get("INSTRUCTPT_THREADS") or os.cpu_count() or 1)
    local = section.gpus_per_node or section.processes_per_node
    root = str(Path(errors.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH", "")) if p)
    env["OMP_NUM_THREADS"] = str(max(1, cores // local))
    env[PARENT] = str(os.getpid())
    if section.nodes == 1:
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def _watch(child: subprocess.Popen[bytes], folder: Path, ctx: WorkerContext) -> int:
    while True:
        if ctx.stop.is_set():
            (folder / STOP).touch()
        try:
            return child.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        finally:
            _forward(folder / PROGRESS, ctx)


def _forward(path: Path, ctx: WorkerContext) -> None:
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    ctx.progress.update(**found)


def _cause(folder: Path, code: int) -> InstructPTError:
    if not (folder / OUTCOME).exists():
        return TrainingError(f"torchrun ended with {code}, and no rank left a cause: it was killed", retryable=True)
    found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    kind = Preempted if found["type"] == "Preempted" else getattr(errors, found["type"], TrainingError)
    return kind(
        found["message"],
        field=found.get("field"),
        value=found.get("value"),
        fix=found.get("fix"),
        retryable=bool(found.get("retryable")),
    )
