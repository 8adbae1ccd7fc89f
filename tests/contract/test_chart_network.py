"""Every (source, destination, port) that the product uses, walked over the rendered NetworkPolicies.

The evaluator follows the API reference of networking.k8s.io/v1: traffic must be let out by the source's policies and
let in by the destination's, policies add up, a pod that none selects is open, and a pod's own node always reaches it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from charts import CHART, FULL, MONITORS, NAMESPACED, Manifest, Render, only

from instructpt.api.base import API_VERSION
from instructpt.cluster import meta
from instructpt.cluster.context import METRICS_PORT, Owner

RELEASE = "instructpt-system"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a connection: a pod, or an address outside; ``is_node`` is the node of the other end."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.244.0.9"
    is_node: bool = False


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A label selector; none and an empty one select everything."""
    selector = selector or {}
    for rule in selector.get("matchExpressions", ()):
        operator, value = rule["operator"], labels.get(rule["key"])
        fits = {
            "In": value in rule.get("values", ()),
            "NotIn": value not in rule.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[operator]
        if not fits:
            return False
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def is_peer(peer: Manifest, end: End, own_namespace: str) -> bool:
    if "ipBlock" in peer:
        address, block = ipaddress.ip_address(end.address), peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(part) for part in block.get("except", ()))
    if not end.namespace:
        return False  # only an address block reaches what is no pod
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": end.namespace}):
            return False
    elif end.namespace != own_namespace:
        return False
    return matches(peer.get("podSelector"), end.labels)


def lets(policies: list[Manifest], way: str, pod: End, other: End, port: int, protocol: str) -> bool:
    """Whether the policies let the pod's traffic with ``other`` through, in one direction."""
    if not pod.namespace:
        return True  # policies govern pods alone
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and way in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], pod.labels)
    ]
    peers_key = {"Ingress": "from", "Egress": "to"}[way]
    for spec in chosen:
        for rule in spec.get(way.lower()) or ():
            ports = rule.get("ports") or [{"port": port, "protocol": protocol}]
            if not any(item["port"] == port and item.get("protocol", "TCP") == protocol for item in ports):
                continue
            peers = rule.get(peers_key)
            if not peers or any(is_peer(peer, other, pod.namespace) for peer in peers):
                return True
    return not chosen


def passes(policies: list[Manifest], source: End, destination: End, port: int, protocol: str = "TCP") -> bool:
    if source.is_node:
        return True
    return lets(policies, "Egress", source, destination, port, protocol) and lets(
        policies, "Ingress", destination, source, port, protocol
    )


def worker(name: str, kind: str, namespace: str = "team-a") -> End:
    owner = Owner(api_version=API_VERSION, kind=kind, name=name, namespace=namespace)
    return End(name=name, namespace=namespace, labels=meta.labels(owner, "train-instruct"))


SYNTHESIS = worker("synthesis", "SynthesisJob")
RANK_0, RANK_1 = worker("rank-0", "TrainingJob"), worker("rank-1", "TrainingJob")
ELSEWHERE = worker("rank-elsewhere", "TrainingJob", "team-b")
DNS = End(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"})
NODE_DNS = End(name="node-dns", address="169.254.20.10")
PROMETHEUS = End(name="prometheus", namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
API = End(name="api", address="10.0.0.1")
S3 = End(name="s3", address="192.0.2.10")
METADATA = End(name="metadata", address="169.254.169.254")
STRANGER = End(name="stranger", namespace="team-a", labels={"app": "web"})
FOREIGN = End(name="foreign", namespace="other", labels={"app": "web"})
KUBELET = End(name="kubelet", address="10.0.1.1", is_node=True)


class Cluster:
    """The rendered policies, and the operator's pod as the Deployment makes it."""

    def __init__(self, found: list[Manifest]) -> None:
        self.policies = [item for item in found if item["kind"] == "NetworkPolicy"]
        template = only(found, "Deployment")["spec"]["template"]
        self.operator = End(name="operator", namespace=RELEASE, labels=template["metadata"]["labels"])
        self.ports = {item["name"]: item["containerPort"] for item in template["spec"]["containers"][0]["ports"]}

    def passes(self, source: End, destination: End, port: int, protocol: str = "TCP") -> bool:
        return passes(self.policies, source, destination, port, protocol)


@pytest.fixture(scope="module")
def cluster(render: Render) -> Cluster:
    return Cluster(render(None, **{"networkPolicy.workloads.namespaces": ["team-a", "team-b"]}))


def test_there_are_policies_for_the_operator_and_for_each_namespace(cluster: Cluster) -> None:
    names = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in cluster.policies]
    assert len(names) == 5
    assert (RELEASE, "instructpt-operator") in names


@pytest.mark.parametrize("port", [443, 6443])
def test_operator_reaches_the_api_server(cluster: Cluster, port: int) -> None:
    assert cluster.passes(cluster.operator, API, port)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize("server", [DNS, NODE_DNS], ids=lambda end: end.name)
def test_operator_and_workers_reach_dns(cluster: Cluster, server: End, protocol: str) -> None:
    for source in (cluster.operator, SYNTHESIS, RANK_0):
        assert cluster.passes(source, server, 53, protocol)


@pytest.mark.parametrize("target", [SYNTHESIS, RANK_0, ELSEWHERE], ids=lambda end: end.name)
def test_operator_and_scraper_read_the_metrics_of_workers(cluster: Cluster, target: End) -> None:
    assert cluster.passes(cluster.operator, target, METRICS_PORT)
    assert cluster.passes(PROMETHEUS, target, METRICS_PORT)


def test_scraper_reads_the_metrics_of_the_operator(cluster: Cluster) -> None:
    assert cluster.ports == {"metrics": 8080, "health": 8081}
    assert cluster.passes(PROMETHEUS, cluster.operator, 8080)


def test_kubelet_probes_the_operator(cluster: Cluster) -> None:
    assert cluster.passes(KUBELET, cluster.operator, 8081)


def test_workers_reach_storage_and_hub(cluster: Cluster) -> None:
    assert cluster.passes(SYNTHESIS, S3, 443)
    assert cluster.passes(RANK_0, S3, 443)


@pytest.mark.parametrize("port", [23456, 29400, 29500, 54321])
def test_ranks_of_a_training_reach_each_other_on_any_port(cluster: Cluster, port: int) -> None:
    assert cluster.passes(RANK_0, RANK_1, port)
    assert cluster.passes(RANK_1, RANK_0, port)


@pytest.mark.parametrize(
    ("source", "destination", "port"),
    [
        (SYNTHESIS, RANK_0, 29500),
        (RANK_0, SYNTHESIS, 29500),
        (RANK_0, ELSEWHERE, 29500),
        (STRANGER, RANK_0, 29500),
        (STRANGER, SYNTHESIS, METRICS_PORT),
        (FOREIGN, SYNTHESIS, METRICS_PORT),
        (PROMETHEUS, SYNTHESIS, 22),
        (SYNTHESIS, S3, 80),
        (SYNTHESIS, API, 6443),
        (SYNTHESIS, METADATA, 80),
        (RANK_0, FOREIGN, 5432),
        (SYNTHESIS, FOREIGN, 53),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_nothing_else_passes_between_workers_and_others(
    cluster: Cluster, source: End, destination: End, port: int
) -> None:
    assert not cluster.passes(source, destination, port)


@pytest.mark.parametrize("port", [8080, 8081, 22])
@pytest.mark.parametrize("source", [STRANGER, FOREIGN, SYNTHESIS], ids=lambda end: end.name)
def test_nobody_else_reaches_the_operator(cluster: Cluster, source: End, port: int) -> None:
    assert not cluster.passes(source, cluster.operator, port)


@pytest.mark.parametrize(
    ("destination", "port"),
    [(SYNTHESIS, 22), (FOREIGN, METRICS_PORT), (S3, 80), (METADATA, 80), (DNS, 9153)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_operator_reaches_nothing_else(cluster: Cluster, destination: End, port: int) -> None:
    assert not cluster.passes(cluster.operator, destination, port)


def test_scraper_reads_metrics_and_not_health(cluster: Cluster) -> None:
    assert not cluster.passes(PROMETHEUS, cluster.operator, 8081)


def test_addresses_of_the_api_server_and_of_storage_can_be_given(render: Render) -> None:
    cluster = Cluster(render(NAMESPACED))
    assert cluster.passes(cluster.operator, API, 6443)
    assert not cluster.passes(cluster.operator, API, 443)
    assert not cluster.passes(cluster.operator, S3, 6443)
    assert cluster.passes(SYNTHESIS, S3, 443)
    assert not cluster.passes(SYNTHESIS, End(name="other", address="198.51.100.1"), 443)
    assert cluster.passes(cluster.operator, SYNTHESIS, METRICS_PORT)
    outside = worker("outside", "SynthesisJob", "team-c")
    assert not cluster.passes(cluster.operator, outside, METRICS_PORT)


def test_further_peers_and_ports_of_values_count(render: Render) -> None:
    cluster = Cluster(render(FULL, *MONITORS))
    assert cluster.ports == {"metrics": 9090, "health": 9091}
    assert cluster.passes(PROMETHEUS, cluster.operator, 9090)
    assert not cluster.passes(PROMETHEUS, cluster.operator, 8080)
    assert cluster.passes(End(name="balancer", address="10.9.9.9"), cluster.operator, 9091)
    assert cluster.passes(cluster.operator, End(name="proxy", address="192.0.2.7"), 3128)
    assert cluster.passes(SYNTHESIS, End(name="minio", namespace="storage"), 9000)


def test_without_scrapers_nobody_may_enter(render: Render) -> None:
    cluster = Cluster(render(None, **{"networkPolicy.scrapers": [], "networkPolicy.workloads.namespaces": ["team-a"]}))
    assert not cluster.passes(PROMETHEUS, cluster.operator, 8080)
    assert not cluster.passes(PROMETHEUS, SYNTHESIS, METRICS_PORT)
    assert cluster.passes(cluster.operator, SYNTHESIS, METRICS_PORT)
    assert cluster.passes(KUBELET, cluster.operator, 8081)


def test_no_port_of_a_rank_is_open_without_the_policy_for_trainings(cluster: Cluster) -> None:
    """The evaluator notices a missing policy."""
    rest = [item for item in cluster.policies if not item["metadata"]["name"].endswith("-training")]
    assert not passes(rest, RANK_0, RANK_1, 29500)


def test_chart_ports_of_workloads_are_those_of_the_code(render: Render) -> None:
    text = Path(CHART, "templates", "network", "operator.yaml").read_text()
    text += Path(CHART, "templates", "network", "workloads.yaml").read_text()
    assert text.count(f"port: {METRICS_PORT}") == 2
