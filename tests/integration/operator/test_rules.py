"""Rules that only a whole operator can keep or break: R12, R16, R18, R20, R21, R22."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import operators
import pytest
import urllib3
import yaml
from operators import Live
from player import CONFIG_MAPS, PYTORCHJOBS, End

from instructpt.plan.naming import ANNOTATION_RECONCILE, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.runtime.lease import LEASES
from instructpt_operator.types import JOBS, OURS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster


def long_ones_wait(labels: Mapping[str, str], number: int) -> End:
    """Training and synthesis run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK and labels[LABEL_STEP] in ("synthesis", "train"))


def versions(kube: KubeClient, namespace: str) -> dict[str, tuple[str, int | None]]:
    """Version and generation of everything that the operator writes."""
    return {
        f"{o['kind']}/{o['metadata']['name']}": (o["metadata"]["resourceVersion"], o["metadata"].get("generation"))
        for type_ in (*OURS.values(), JOBS, PYTORCHJOBS, CONFIG_MAPS)
        for o in kube.list(type_, namespace)
        if o["metadata"]["name"] != "kube-root-ca.crt"
    }


def test_r12_visits_without_a_change_write_nothing(live: Live, kube: KubeClient, namespace: str) -> None:
    operator, player = live(long_ones_wait)
    objects = [operators.synthesis("syn"), operators.training("trn"), operators.pipeline("ipt")]
    for obj in objects:
        operators.create(kube, namespace, obj)
    operators.wait_condition(kube, namespace, objects[0], "Running")
    operators.wait_for(lambda: kube.list(PYTORCHJOBS, namespace))
    operators.wait_for(
        lambda: {"ipt-synthesis-synthesis-1"} <= {j["metadata"]["name"] for j in kube.list(JOBS, namespace)}
    )
    # The number of workers is progress, and so may be late.
    operators.wait_for(lambda: (operators.get(kube, namespace, objects[0]) or {})["status"]["workers"] == 2)
    before = operators.wait_for(lambda: _steady(kube, namespace))
    writes = operator.manager.executor.writes
    for _ in range(2):
        for kind, place, name in operator.manager.caches.all_keys():
            operator.manager.visit(kind, (place, name))
    assert versions(kube, namespace) == before
    assert operator.manager.executor.writes == writes


def _steady(kube: KubeClient, namespace: str) -> dict[str, tuple[str, int | None]] | None:
    """The versions, once nothing has changed for two seconds."""
    before, began = versions(kube, namespace), time.monotonic()
    while time.monotonic() - began < 2.0:
        if versions(kube, namespace) != before:
            return None
        time.sleep(0.2)
    return before


def test_r18_paused_in_the_middle_it_stops_and_then_goes_on(live: Live, kube: KubeClient, namespace: str) -> None:
    operator, player = live(long_ones_wait)
    obj = operators.synthesis("syn")
    operators.create(kube, namespace, obj)
    operators.wait_condition(kube, namespace, obj, "Running")
    type_ = OURS["SynthesisJob"]
    pause: dict[str, Any] = {"metadata": {"annotations": {ANNOTATION_RECONCILE: "disabled"}}}
    paused = kube.merge_patch(type_, namespace, "syn", pause)
    version = paused["metadata"]["resourceVersion"]
    operators.wait_for(
        lambda: (
            int(operator.manager.caches.get("SynthesisJob", namespace, "syn")["metadata"]["resourceVersion"])
            >= int(version)
        )
    )
    writes = operator.manager.executor.writes
    player.release("synthesis")
    operators.wait_for(lambda: kube.get(JOBS, namespace, "syn-synthesis-1").get("status", {}).get("completionTime"))
    operator.manager.visit("SynthesisJob", (namespace, "syn"))
    assert operator.manager.executor.writes == writes
    assert kube.get(type_, namespace, "syn")["metadata"]["resourceVersion"] == version
    kube.merge_patch(type_, namespace, "syn", {"metadata": {"annotations": {ANNOTATION_RECONCILE: None}}})
    operators.wait_condition(kube, namespace, obj, "Complete")


def test_r21_sigterm_ends_well_r20_probes_tell_the_truth_and_r22_settings_are_those_of_the_start(
    pytorchjobs: ApiServer, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """One process from its start to its end; a second one stands by, warm, and does nothing."""
    configs = [
        operators.config_file(tmp_path, namespace, lease={"enabled": True}, images=_images("example.com/first:1"))
        for _ in range(2)
    ]
    logs = [tmp_path / f"{n}.log" for n in range(2)]
    processes = [operators.spawn(pytorchjobs.kubeconfig, configs[0], logs[0], namespace)]
    try:
        operators.wait_for(lambda: _status(configs[0], "readyz") == 200, otherwise=logs[0].read_text)
        assert _status(configs[0], "healthz") == 200
        holder = operators.wait_for(lambda: _holder(kube, namespace))
        processes.append(operators.spawn(pytorchjobs.kubeconfig, configs[1], logs[1], namespace))
        operators.wait_for(lambda: _status(configs[1], "readyz") == 200, otherwise=logs[1].read_text)
        assert _holder(kube, namespace) == holder
        expected = operators.settings_hash(configs[0])
        changed = yaml.safe_load(configs[0].read_text()) | {"images": _images("example.com/second:2")}
        configs[0].write_text(yaml.safe_dump(changed))
        obj = operators.synthesis("syn")
        operators.create(kube, namespace, obj)
        operators.wait_for(lambda: kube.list(JOBS, namespace), otherwise=logs[0].read_text)
        (job,) = kube.list(JOBS, namespace)
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/first:1"
        hashed = operators.wait_for(
            lambda: (operators.get(kube, namespace, obj) or {}).get("status", {}).get("settings")
        )
        assert hashed == expected != operators.settings_hash(configs[0])
        assert operators.kill(processes[1], signal.SIGTERM) == 0
        assert _holder(kube, namespace) == holder
        began = time.monotonic()
        assert operators.kill(processes[0], signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
        assert _holder(kube, namespace) == ""
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any("Traceback" in log.read_text() for log in logs)


def _images(image: str) -> dict[str, Any]:
    return {"synthesizer": {"cpu": image}, "operator": {"cpu": image}, "trainer": {"cpu": image}}


def _status(config: Path, path: str) -> int:
    """Of the probe of the operator that was started with this file."""
    port = yaml.safe_load(config.read_text())["health"]["port"]
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        try:
            return int(pool.request("GET", f"http://127.0.0.1:{port}/{path}").status)
        except urllib3.exceptions.HTTPError:
            return 0


def _holder(kube: KubeClient, namespace: str) -> str:
    found = [lease for lease in kube.list(LEASES, namespace) if lease["metadata"]["name"] == "instructpt-operator"]
    return str(found[0]["spec"].get("holderIdentity") or "") if found else ""
