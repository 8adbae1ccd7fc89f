"""The test bed itself: what other tests in this folder build on is there and is real."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from cluster import base_image, controlplane, node, processes, s3, store
from cluster import bed as test_bed

pytestmark = pytest.mark.cluster

IMAGE = base_image.NSLOOKUP
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
# Signs a request for S3 with nothing but the standard library, from the variables that every S3 client reads.
SIGNED_PUT = """
import datetime, hashlib, hmac, os, urllib.request
host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
body, names = b"from a pod", "host;x-amz-content-sha256;x-amz-date"
digest = hashlib.sha256(body).hexdigest()
signed = f"host:{host}\\nx-amz-content-sha256:{digest}\\nx-amz-date:{now}\\n"
request = f"PUT\\n/pods/hello\\n\\n{signed}\\n{names}\\n{digest}"
scope = f"{now[:8]}/us-east-1/s3/aws4_request"
text = f"AWS4-HMAC-SHA256\\n{now}\\n{scope}\\n{hashlib.sha256(request.encode()).hexdigest()}"
key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
for part in scope.split("/"):
    key = hmac.new(key, part.encode(), "sha256").digest()
signature = hmac.new(key, text.encode(), "sha256").hexdigest()
access = f"AWS4-HMAC-SHA256 Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
headers = {
    "x-amz-date": now,
    "x-amz-content-sha256": digest,
    "Authorization": f"{access}, SignedHeaders={names}, Signature={signature}",
}
put = urllib.request.Request(f"http://{host}/pods/hello", data=body, headers=headers, method="PUT")
print(urllib.request.urlopen(put).status)
"""

# The worker meets the master at its name; a master that ended before would leave the worker's init container waiting.
MEETING = """
import os, socket
rank, port = os.environ["RANK"], int(os.environ["MASTER_PORT"])
if rank == "0":
    with socket.create_server(("", port)) as server:
        peer, _ = server.accept()
        heard = peer.recv(100).decode()
else:
    with socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=30) as peer:
        peer.sendall(f"rank {rank}".encode())
        heard = "nothing"
print(f"rank {rank} of {os.environ['WORLD_SIZE']} heard {heard}")
"""


def pod_spec(*command: str, restricted: bool = False, **more: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": list(command)}
    spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
    if restricted:
        container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        spec["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {**spec, "containers": [{**container, **more}]}


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    body = {"backoffLimit": 0, "template": {"spec": spec}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": body}


def pytorch_job(name: str, *, restricted: bool) -> dict[str, Any]:
    spec = pod_spec("python3", "-c", MEETING, restricted=restricted)
    spec["containers"][0]["name"] = "pytorch"
    replica = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": spec}}
    body = {"pytorchReplicaSpecs": {"Master": replica, "Worker": replica}}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name}, "spec": body}


def test_job_runs_to_complete(bed):
    bed.apply(job("hello", pod_spec("sh", "-c", "echo hello from $(hostname)")))
    bed.wait("the job", lambda: bed.has_condition("job", "hello", "Complete"))
    assert bed.kubectl("logs", "job/hello").startswith("hello from hello-")


def test_job_of_a_failing_pod_fails(bed):
    bed.apply(job("sad", pod_spec("sh", "-c", "exit 3")))
    bed.wait("the job", lambda: bed.has_condition("job", "sad", "Failed"))
    (pod,) = bed.get("pods", "-l", "job-name=sad")["items"]
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3


def test_headless_service_resolves_to_its_pod(bed):
    pod = {"name": "server", "labels": {"app": "server"}}
    service = {"clusterIP": "None", "selector": {"app": "server"}, "ports": [{"port": 80}]}
    bed.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": pod_spec("sleep", "600")},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": service},
    )
    bed.wait("the pod", lambda: bed.has_condition("pod", "server", "Ready"))
    look = f"until getent hosts server && nslookup server.{bed.namespace}.svc.cluster.local; do sleep 0.2; done"
    bed.apply(job("look", pod_spec("sh", "-c", look)))
    bed.wait("the job", lambda: bed.has_condition("job", "look", "Complete"))
    assert bed.get("pod", "server")["status"]["podIP"] in bed.kubectl("logs", "job/look")


def test_pod_writes_to_s3_with_credentials_and_host_reads(bed):
    access = s3.credentials(bed.layout)
    client = boto3.client(
        "s3",
        endpoint_url=access["AWS_ENDPOINT_URL"],
        region_name=access["AWS_REGION"],
        aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
    )
    if "pods" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="pods")
    client.delete_object(Bucket="pods", Key="hello")
    data = {name: base64.b64encode(value.encode()).decode() for name, value in access.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "data": data}
    bed.apply(secret, job("put", pod_spec("python3", "-c", SIGNED_PUT, envFrom=[{"secretRef": {"name": "s3"}}])))
    bed.wait("the job", lambda: bed.has_condition("job", "put", "Complete"))
    assert client.get_object(Bucket="pods", Key="hello")["Body"].read() == b"from a pod"


def test_s3_credentials_are_for_their_owner_alone(bed):
    assert bed.layout.s3_credentials.stat().st_mode & 0o777 == 0o600
    for part in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = part.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        assert s3.credentials(bed.layout)["AWS_SECRET_ACCESS_KEY"].encode() not in line


@pytest.mark.parametrize("restricted", [False, True], ids=["plain", "restricted"])
def test_pytorchjob_of_master_and_worker_succeeds(bed, restricted):
    if restricted:
        labels = [f"{name}={value}" for name, value in RESTRICTED.items()]
        bed.kubectl("label", "namespace", bed.namespace, *labels)
    bed.apply(pytorch_job("train", restricted=restricted))
    bed.wait("the job", lambda: bed.has_condition("pytorchjob", "train", "Succeeded"), 90.0)
    # A job has succeeded when its master has; its worker may be at work still.
    bed.wait("the worker", lambda: bed.get("pod", "train-worker-0")["status"]["phase"] == "Succeeded")
    said = {name: bed.kubectl("logs", f"train-{name}-0", "-c", "pytorch") for name in ("master", "worker")}
    assert said == {"master": "rank 0 of 2 heard rank 1\n", "worker": "rank 1 of 2 heard nothing\n"}
    # The worker waited for the master's name by the init container that the operator adds.
    (waiter,) = bed.get("pod", "train-worker-0")["status"]["initContainerStatuses"]
    assert waiter["state"]["terminated"]["exitCode"] == 0


def test_fake_node_becomes_ready_and_plays_pods(bed):
    node.fake_node(bed.layout, "fake-0")
    try:
        bed.wait("the node", lambda: bed.has_condition("node", "fake-0", "Ready"))
        spec = pod_spec("sleep", "600")
        spec["tolerations"] = [{"key": node.FAKE, "operator": "Exists"}]
        spec["nodeSelector"] = {node.NODE_LABEL: "fake"}
        bed.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "played"}, "spec": spec})
        bed.wait("the pod", lambda: bed.has_condition("pod", "played", "Ready"))
        assert bed.get("pod", "played")["spec"]["nodeName"] == "fake-0"
    finally:
        bed.kubectl("delete", "node", "fake-0")


def test_pod_cannot_leave_the_machine(bed):
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
    bed.apply(job("out", pod_spec("python3", "-c", probe)))
    bed.wait("the job", lambda: bed.has_condition("job", "out", "Failed"))
    said = bed.kubectl("logs", "job/out")
    assert "TimeoutError" in said or "Network is unreachable" in said or "No route to host" in said


def test_writes_are_counted_by_user(bed):
    bed.apply(job("counted", pod_spec("true")))
    bed.wait("the job", lambda: bed.has_condition("job", "counted", "Complete"))

    def seen() -> list[tuple[str, str, str]]:
        here = [event for event in controlplane.audited_writes(bed.layout) if event["namespace"] == bed.namespace]
        return [(event["user"], event["verb"], event["resource"]) for event in here if event["code"] < 300]

    bed.wait("the audit log", lambda: any(resource == "jobs/status" for _, _, resource in seen()))
    assert seen().count(("system:serviceaccount:kube-system:job-controller", "create", "pods")) == 1
    assert seen().count(("admin", "patch", "jobs")) == 1


def test_loaded_image_is_known_and_not_loaded_again(bed):
    archive = base_image.archives([base_image.PAUSE])[base_image.PAUSE]
    (image,) = store.load_image(archive, layout=bed.layout)
    assert image.ref == base_image.PAUSE
    assert store.has_image(image.ref, image.config, bed.layout)
    assert not store.has_image(image.ref, "sha256:" + "0" * 64, bed.layout)


def test_a_process_of_a_pod_can_be_held_and_killed_from_here(bed):
    spec = {**pod_spec("sh", "-c", "sleep 600; true"), "restartPolicy": "Always"}
    bed.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "victim"}, "spec": spec})
    bed.wait("the pod", lambda: bed.has_condition("pod", "victim", "Ready"))
    pid = processes.main_process(bed.get("pod", "victim"), "main")

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with processes.stopped(pid):
        bed.wait("it is held", lambda: state() == "T")
    bed.wait("it goes on", lambda: state() == "S")
    processes.kill(pid)

    def restarted() -> Any:
        (status,) = bed.get("pod", "victim")["status"]["containerStatuses"]
        return status if status["restartCount"] == 1 and "running" in status["state"] else None

    status = bed.wait("it runs again", restarted)
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert processes.main_process(bed.get("pod", "victim"), "main") != pid


def test_second_up_changes_nothing(bed):
    before = {part.name: part.pid for part in test_bed.parts.known(bed.layout)}
    script = Path(test_bed.__file__)
    done = subprocess.run([sys.executable, script, "up"], capture_output=True, text=True, check=True)
    assert "up already" in done.stdout
    assert {part.name: part.pid for part in test_bed.parts.known(bed.layout)} == before


def test_node_tells_what_it_has(bed):
    (real,) = bed.get("nodes", "-l", f"{node.NODE_LABEL}=real")["items"]
    assert real["status"]["capacity"]["pods"] == "200"
    assert int(real["status"]["allocatable"]["cpu"]) >= 1
    assert json.loads(bed.layout.kubectl("version", "-o", "json"))["serverVersion"]["minor"] == "36"
