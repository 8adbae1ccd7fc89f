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
from instructpt.errors import InstructPTError, TrainingError
from instructpt.telemetry.context import WorkerContext
from instructpt.training import errors as training_errors
from instructpt.training.errors import PeerLostError, Preempted
from instructpt.training.nodes import Nodes
from instructpt.training.rank import (
    MET,
    OUTCOME,
    PARENT,
    PROGRESS,
    RUNSPEC,
    STEPPING,
    STOP,
    WORKSPACE,
    end_with_parent,
)
from instructpt.training.workspace import Workspace

log = logging.getLogger(__name__)

_SECONDS = 0.5


def launch(spec: RunSpec, workspace: Workspace, ctx: WorkerContext) -> None:
    """Run the ranks of this node to their end.

    On SIGTERM (``ctx.stop``) the ranks are asked to leave and given all the time they need for a checkpoint: whoever
    sent the signal decides when patience ends. A node that still waits for the others leaves at once.

    Raises:
        InstructPTError: What a rank failed with; :class:`Preempted` after a checkpoint on request.
    """
    assert spec.train is not None
    folder = ctx.scratch / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / RUNSPEC).write_text(spec.to_json(), encoding="utf-8")
    (folder / WORKSPACE).write_text(workspace.to_json(), encoding="utf-8")
    nodes, interface = None, None
    if spec.train.nodes > 1:
        nodes = Nodes.from_environment(spec.train.nodes, ctx.replica)
        address = nodes.address if nodes.rank == 0 else nodes.await_name(ctx.stop.wait)
        if address is None:
            raise Preempted(f"stopped while it waited for {nodes.where}: no step was done", retryable=True)
        interface = nodes.interface(address)
        log.info("node %d of %d meets the others at %s", nodes.rank, nodes.count, nodes.where)
    # In a session of its own: a signal to the worker's group would make torchrun kill its ranks after 30 s.
    child = subprocess.Popen(
        [*command(spec.train, nodes), str(folder)],
        stdin=subprocess.DEVNULL,
        env=environment(spec.train, interface),
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    try:
        code = _watch(child, folder, ctx, nodes)
    finally:
        if child.poll() is None:
            child.kill()  # the ranks notice by themselves that torchrun and this worker are gone
            child.wait()
    if code == 0:
        return
    error = _cause(folder, code, nodes)
    if ctx.stop.is_set() and isinstance(error, PeerLostError):
        raise Preempted(f"stopped, and so was a peer: the last checkpoint stands ({error})", retryable=True)
    raise error


def command(section: TrainRun, nodes: Nodes | None) -> list[str]:
    """The torchrun command of one node, without the folder; ``nodes`` where there are several."""
    local = section.gpus_per_node or section.processes_per_node
    out = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0", f"--nproc_per_node={local}"]
    if section.nodes == 1:
        out += ["--standalone", "--local_addr=127.0.0.1"]
    else:
        assert nodes is not None, "several nodes know of each other"
        out += nodes.arguments()
    return [*out, "-m", "instructpt.training.rank"]


def environment(section: TrainRun, interface: str | None = None) -> dict[str, str]:
    """Of torchrun: without the ranks of a launcher above, with a thread count for each rank.

    Args:
        section: Says how many ranks there are.
        interface: Between the nodes; None for gloo's own choice.
    """
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    # PET_...: torchrun's own options, which the training operator sets, too; those of the command line are all.
    env = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("PET_")}
    cores = int(os.environ.get("INSTRUCTPT_THREADS") or os.cpu_count() or 1)
    local = section.gpus_per_node or section.processes_per_node
    root = str(Path(errors.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH", "")) if p)
    env["OMP_NUM_THREADS"] = str(max(1, cores // local))
    env[PARENT] = str(os.getpid())
    if section.nodes == 1:
        interface = "lo"
    if interface:
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    return env


def _watch(child: subprocess.Popen[bytes], folder: Path, ctx: WorkerContext, nodes: Nodes | None) -> int:
    while True:
        if ctx.stop.is_set():
            if nodes is not None and not (folder / STEPPING).exists():
                raise Preempted("stopped before the first step of this life, which may never come", retryable=True)
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
    over = dict.fromkeys(ctx.progress.snapshot()["notes"].keys() - found["notes"].keys())
    found["notes"] |= over
    ctx.progress.update(**{name: value for name, value in found.items() if name != "per_second"})


def _cause(folder: Path, code: int, nodes: Nodes | None = None) -> InstructPTError:
    if not (folder / OUTCOME).exists():
        if nodes is not None and not (folder / MET).exists():
            return PeerLostError(
                f"node {nodes.rank} of {nodes.count} did not meet the others at {nodes.where} within "
                f"{nodes.seconds} s, or one of them left (torchrun ended with {code})",
                fix="look at the other nodes: each must run, and reach that port of node 0",
                retryable=True,
            )
        return TrainingError(f"torchrun ended with {code}, and no rank left a cause: it was killed", retryable=True)
    found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    kinds = {**vars(errors), **vars(training_errors)}
    kind: type[InstructPTError] = kinds.get(found["type"], TrainingError)
    return kind(
        found["message"],
        field=found.get("field"),
        value=found.get("value"),
        fix=found.get("fix"),
        retryable=bool(found.get("retryable")),
    )
