"""The real operator in this process or as a process of its own, and objects of ours to give it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from instructpt_operator.__main__ import Operator
from instructpt_operator.runtime.client import ApiError, KubeClient
from instructpt_operator.settings import Settings, load_settings
from instructpt_operator.types import OURS, launcher_type

ROOT = Path(__file__).parents[1]
PYTORCHJOB_CRD = "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"
WAIT_SECONDS = 60.0
Live = Callable[..., tuple[Operator, Any]]
"""Starts the operator in this process and a player of pods, both for one test."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def settings(namespace: str, **changes: Any) -> Settings:
    """Settings for one namespace, without a lease."""
    os.environ.pop("INSTRUCTPT_LOG_LEVEL", None)
    health, metrics = _free_ports(2)
    data = {
        "watchNamespaces": [namespace],
        "lease": {"enabled": False},
        "progress": {"enabled": False, "intervalSeconds": 1},
        "health": {"port": health},
        "metrics": {"port": metrics},
        **changes,
    }
    return load_settings(None, {}).model_validate(data)


@contextlib.contextmanager
def running(kubeconfig: Path, namespace: str, **changes: Any) -> Iterator[Operator]:
    """The operator in this process."""
    operator = Operator(
        settings(namespace, **changes), kubeconfig=str(kubeconfig), namespace=namespace, host="127.0.0.1"
    )
    hasten(operator)
    operator.start()
    try:
        yield operator
    finally:
        operator.stop()


def hasten(operator: Operator, *, retry_seconds: float = 0.2, start_seconds: float = 0.3) -> None:
    """Shorten the waits that no setting is for."""
    manager = operator.manager
    manager._config = replace(
        manager._config, retry_seconds=retry_seconds, start_seconds=start_seconds, blocked_seconds=1.0
    )


def config_file(folder: Path, namespace: str, **changes: Any) -> Path:
    """The same settings as a file."""
    path = folder / f"operator-{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(settings(namespace, **changes).model_dump(mode="json", by_alias=True)))
    return path


def spawn(kubeconfig: Path, config: Path, log: Path, namespace: str) -> subprocess.Popen[bytes]:
    """The operator as a process of its own; the caller ends it by its pid."""
    command = [sys.executable, "-m", "instructpt_operator", f"--config={config}", f"--kubeconfig={kubeconfig}",
               f"--namespace={namespace}", "--host=127.0.0.1"]  # fmt: skip
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment(), preexec_fn=die_with_parent)


def environment() -> dict[str, str]:
    """Of a process that runs the operator from this checkout."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}/operator:{ROOT}"}


def die_with_parent() -> None:
    """Have this process killed when the thread ends that started it: nothing outlives a test."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> int:
    """End a process that :func:`spawn` started."""
    process.send_signal(number)
    return process.wait(timeout=30)


def install_pytorchjob(server: Any) -> None:
    """The training operator's CRD, from its Go module."""
    from cluster import binaries

    path = binaries.training_operator_source() / PYTORCHJOB_CRD
    server.kubectl("apply", "--server-side", "-f", str(path))
    client = KubeClient.connect(str(server.kubeconfig))
    wait_for(lambda: client.serves(launcher_type("pytorchjob")), otherwise="PyTorchJobs are not served")


def sample(name: str) -> dict[str, Any]:
    """One of the sample objects."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "manifests" / "samples" / f"{name}.yaml").read_text())
    return found


def corpus(name: str, **spec: Any) -> dict[str, Any]:
    """A small Corpus."""
    return _object("Corpus", name, {"uri": "s3://raw/docs/*.jsonl", "storage": {"uri": f"s3://lab/{name}"}, **spec})


def synthesis(name: str, **spec: Any) -> dict[str, Any]:
    """A SynthesisJob by rules over a corpus given by URI."""
    base = {
        "storage": {"uri": f"s3://lab/{name}"},
        "input": {"uri": "s3://lab/corpus"},
        "strategy": "mined",
        "engine": {"name": "mined"},
        "parallelism": 2,
    }
    return _object("SynthesisJob", name, {**base, **spec})


def training(name: str, **spec: Any) -> dict[str, Any]:
    """A TrainingJob over an augmented corpus given by URI, two nodes of one CPU process."""
    base = {
        "storage": {"uri": f"s3://lab/{name}"},
        "init": {"preset": "tiny"},
        "mixture": [{"uri": "s3://lab/augmented", "format": "augmented", "name": "augmented"}],
        "tokens": 100000,
        "nodes": 2,
    }
    return _object("TrainingJob", name, {**base, **spec})


def pipeline(name: str, **spec: Any) -> dict[str, Any]:
    """A pipeline by rules, with two arms."""
    base = {
        "storage": {"uri": f"s3://lab/{name}"},
        "corpus": {"uri": "s3://raw/docs/*.jsonl"},
        "synthesis": {"strategy": "mined", "engine": {"name": "mined"}, "parallelism": 2},
        "training": {"init": {"preset": "tiny"}, "tokens": 100000, "nodes": 2},
    }
    return _object("InstructionPretraining", name, {**base, **spec})


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def create(client: KubeClient, namespace: str, obj: Mapping[str, Any]) -> dict[str, Any]:
    """Create an object of ours in a namespace."""
    return client.create(OURS[obj["kind"]], {**obj, "metadata": {**obj["metadata"], "namespace": namespace}})


def get(client: KubeClient, namespace: str, obj: Mapping[str, Any]) -> dict[str, Any] | None:
    """An object as it is now, or ``None``."""
    try:
        return client.get(OURS[obj["kind"]], namespace, obj["metadata"]["name"])
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def condition(obj: Mapping[str, Any] | None, type_: str) -> dict[str, Any]:
    """A condition of an object; empty where it has none."""
    conditions = (obj or {}).get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == type_), {})


def is_true(obj: Mapping[str, Any] | None, type_: str) -> bool:
    """Whether a condition holds."""
    return condition(obj, type_).get("status") == "True"


def wait_for(
    what: Callable[[], Any], *, seconds: float = WAIT_SECONDS, otherwise: Callable[[], object] | str = "not in time",
    every: float = 0.05,
) -> Any:  # fmt: skip
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: It did not become true; says what ``otherwise`` tells.
    """
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(otherwise if isinstance(otherwise, str) else f"{otherwise()}")
        time.sleep(every)
    return found


def wait_condition(
    client: KubeClient, namespace: str, obj: Mapping[str, Any], type_: str, *, seconds: float = WAIT_SECONDS
) -> dict[str, Any]:
    """Wait until a condition holds, and return the object."""

    def holds() -> dict[str, Any] | None:
        now = get(client, namespace, obj)
        return now if is_true(now, type_) else None

    def said() -> object:
        return (get(client, namespace, obj) or {}).get("status")

    found: dict[str, Any] = wait_for(holds, seconds=seconds, otherwise=said)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def age(obj: Mapping[str, Any]) -> float:
    """Seconds since an object was created."""
    created = datetime.fromisoformat(obj["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return (datetime.now(UTC) - created).total_seconds()


def size(obj: Mapping[str, Any]) -> int:
    """Bytes of an object as JSON."""
    return len(json.dumps(obj))


def settings_hash(config: Path) -> str:
    """Of the settings in a file."""
    return load_settings(config, {}).hash
