"""The node of the test bed: containerd, kubelet, kube-proxy, name service, and kwok for fake nodes."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

from cluster import base_image, binaries, cgroups, parts, store
from cluster.layout import (
    API_URL,
    CGROUP,
    DNS_SERVICE,
    NETNS,
    NODE,
    NODE_ADDRESS,
    NODE_LABEL,
    NODE_POD_RANGE,
    POD_RANGE,
    Layout,
)

READY_SECONDS = 60.0
FAKE = "kwok.x-k8s.io/node"
# Where containerd, runc, the kubelet and the network plugins write whatever they are told. In the mount namespace of
# containerd, folders of this run lie there instead.
FIXED_PLACES = (Path("/run/containerd"), Path("/var/lib/cni"), Path("/var/lib/kubelet"), Path("/var/log"))
PRIVATE_MOUNTS = """
set -e
mount --make-rshared /
root=$1; shift
for place in {places}; do mount --bind "$root/private$place" "$place"; done
exec "$@"
"""

CONTAINERD = """version = 2
root = "{store}"
state = "{state}/state"
{disabled}
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Where oom_score_adj may not be lowered, as inside some containers, runc would fail without this.
  restrict_oom_score_adj = true
  # Network namespaces of pods lie below the state, not beside those of the machine.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{root}/cni"
"""
COREFILE = """.:53 {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    endpoint {api}
    kubeconfig {kubeconfig} {context}
    pods insecure
  }}
  cache 5
}}
"""


def start_containerd(layout: Layout, *, pods: bool = True) -> None:
    """Start containerd over the kept store and wait until it answers; without ``pods`` it only tends the store."""
    layout.containerd.mkdir(exist_ok=True)
    layout.store.mkdir(parents=True, exist_ok=True)
    (layout.root / "cni").mkdir(exist_ok=True)
    (layout.root / "cni/10-bed.conflist").write_text(json.dumps(_cni(layout)))
    config = layout.root / "containerd.toml"
    config.write_text(
        CONTAINERD.format(
            store=layout.store,
            state=layout.containerd,
            disabled="" if pods else 'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
            socket=layout.containerd_socket,
            pause=base_image.PAUSE,
            root=layout.root,
        )
    )
    layout.store_in_use.touch()
    for place in FIXED_PLACES:
        place.mkdir(parents=True, exist_ok=True)
        Path(f"{layout.root}/private{place}").mkdir(parents=True, exist_ok=True)
    script = PRIVATE_MOUNTS.format(places=" ".join(map(str, FIXED_PLACES)))
    apart = ["unshare", "--mount", "sh", "-c", script, "sh", str(layout.root)]
    parts.start(layout, "containerd", [*apart, "containerd", "-c", str(config)])
    parts.wait_for(layout, "containerd", lambda: _answers(layout), READY_SECONDS, "containerd")


def start_kubelet(layout: Layout) -> None:
    """Start the kubelet and kube-proxy; the API server and containerd are ready by then."""
    cgroups.make()
    config = layout.root / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(layout), indent=1))
    kubelet = [
        str(binaries.path("kubelet")),
        f"--config={config}",
        f"--kubeconfig={layout.kubelet_kubeconfig}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
        f"--node-labels={NODE_LABEL}=real",
        f"--root-dir={layout.root}/kubelet",
    ]
    # What the kubelet mounts containerd must see, and nobody else need.
    containerd = next(part for part in parts.known(layout) if part.name == "containerd")
    parts.start(layout, "kubelet", ["nsenter", f"--mount=/proc/{containerd.pid}/ns/mnt", *kubelet])
    proxy = [
        str(binaries.path("kube-proxy")),
        f"--kubeconfig={layout.kubeconfig}",
        f"--cluster-cidr={POD_RANGE}",
        f"--hostname-override={NODE}",
        "--conntrack-max-per-core=0",
    ]
    parts.start(layout, "kube-proxy", proxy)


def start_helpers(layout: Layout) -> None:
    """Start the name service and kwok."""
    corefile = layout.root / "Corefile"
    corefile.write_text(COREFILE.format(address=NODE_ADDRESS, api=API_URL, kubeconfig=layout.kubeconfig, context=NETNS))
    parts.start(layout, "coredns", [str(binaries.path("coredns")), "-conf", str(corefile)])
    kwok = [
        str(binaries.path("kwok")),
        f"--kubeconfig={layout.kubeconfig}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={FAKE}=fake",
        "--cidr=10.245.0.0/16",
        f"--node-ip={NODE_ADDRESS}",
    ]
    parts.start(layout, "kwok", kwok, env={"HOME": str(layout.root)})
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-1",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [NODE_ADDRESS]}],
    }
    apply(layout, service, endpoints)


def apply(layout: Layout, *objects: dict[str, object]) -> None:
    """Apply objects by the server."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    layout.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=content)


def wait_for_node(layout: Layout) -> None:
    """Wait until pods can run: the node is ready and namespaces get their service accounts."""

    def is_ready() -> bool:
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        try:
            ready = layout.kubectl("get", "node", NODE, "-o", path, timeout=10.0) == "True"
            return ready and bool(layout.kubectl("get", "serviceaccount", "default", "-o", "name", timeout=10.0))
        except RuntimeError:  # not registered yet
            return False

    parts.wait_for(layout, "the node", is_ready, READY_SECONDS, "kubelet")


def fake_node(layout: Layout, name: str, *, cpus: int = 32, gpus: int = 8) -> None:
    """Add a node that kwok plays; only pods that tolerate its taint go there, and they run nothing."""
    amounts = {"cpu": str(cpus), "memory": "256Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE: "fake"},
            "labels": {NODE_LABEL: "fake", "kubernetes.io/hostname": name},
        },
        "spec": {"taints": [{"key": FAKE, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": amounts, "allocatable": amounts},
    }
    apply(layout, node)


def clean_store(layout: Layout) -> None:
    """Forget the containers of a run that ended without order; content and images stay."""
    start_containerd(layout, pods=False)
    store.remove_containers(layout)
    for name in ("sandboxes", "containers"):
        shutil.rmtree(layout.store / "io.containerd.grpc.v1.cri" / name, ignore_errors=True)


def remove_places() -> None:
    """Remove the mount points that were made for the private mounts; what others use is not empty and stays."""
    for place in FIXED_PLACES:
        with contextlib.suppress(OSError):
            place.rmdir()


def _answers(layout: Layout) -> bool:
    try:
        store.ctr(layout, "version", timeout=5.0)
    except (RuntimeError, subprocess.TimeoutExpired):
        return False
    return True


def _cni(layout: Layout) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{layout.root}/leases",
            "ranges": [[{"subnet": NODE_POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "bed", "plugins": [bridge, portmap]}


def _kubelet_config(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
            "webhook": {"enabled": True},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "tlsCertFile": f"{layout.pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{layout.pki}/kubelet.key",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "maxPods": 200,
        "serializeImagePulls": False,
        "maxParallelImagePulls": 4,
        "registryPullQPS": 0,
    }
