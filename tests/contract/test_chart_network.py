"""Every (source, destination, port) that the product uses, walked over the rendered NetworkPolicies.

The evaluator follows the API reference of networking.k8s.io/v1: traffic must be let out by the source's policies and
let in by the destination's, policies add up, a pod that none selects is open, and a pod's own node always reaches it.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import rendering
from charts import CHART, FULL, MONITORS, NAMESPACED, Manifest, Render, only, pod_templates

from instructpt.api.runspec import StageKind
from instructpt.cluster.context import METRICS_PORT
from instructpt.cluster.render import render_task
from instructpt.plan import naming

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


def workers(namespace: str) -> dict[tuple[StageKind, str], End]:
    """A pod of every stage there is, by kind and task, with the labels that it is rendered with."""
    found = {}
    for resource in (
        rendering.corpus(),
        rendering.synthesis(),
        rendering.training(tokenizer={"train": {}}),
        rendering.evaluation(),
        rendering.pipeline(),
    ):
        for stage, task in rendering.tasks(resource):
            if resource.kind == "InstructionPretraining" and stage.kind != "report":
                continue  # of its children, which are objects of their own
            made = render_task(stage, task, 1, rendering.context(resource, namespace=namespace))
            for template in rendering.pod_templates(made):
                labels = template["metadata"]["labels"]
                name = f"{stage.kind}-{labels[naming.LABEL_TASK]}"
                found[stage.kind, labels[naming.LABEL_TASK]] = End(name=name, namespace=namespace, labels=labels)
    return found


WORKERS = workers("team-a")
EVERY_WORKER = pytest.mark.parametrize("worker", WORKERS.values(), ids=lambda end: end.name)
SYNTHESIS, RANK_0 = WORKERS["synthesize", "work"], WORKERS["train", "work"]
RANK_1 = replace(RANK_0, name="rank-1")
ELSEWHERE = workers("team-b")["train", "work"]
DNS = End(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"})
NODE_DNS = End(name="node-dns", address="169.254.20.10")
PROMETHEUS = End(name="prometheus", namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
API = End(name="api", address="10.0.0.1")
S3 = End(name="s3", address="192.0.2.10")
METADATA = End(name="metadata", address="169.254.169.254")
GKE = End(name="gke-metadata", address="169.254.169.252")
EKS_AGENT = End(name="eks-agent", address="169.254.170.23")
STRANGER = End(name="stranger", namespace="team-a", labels={"app": "web"})
FOREIGN = End(name="foreign", namespace="other", labels={"app": "web"})
KUBELET = End(name="kubelet", address="10.0.1.1", is_node=True)


class Cluster:
    """The rendered policies, and the chart's own pods as it makes them."""

    def __init__(self, found: list[Manifest]) -> None:
        self.policies = [item for item in found if item["kind"] == "NetworkPolicy"]
        template = only(found, "Deployment")["spec"]["template"]
        self.operator = End(name="operator", namespace=RELEASE, labels=template["metadata"]["labels"])
        self.ports = {item["name"]: item["containerPort"] for item in template["spec"]["containers"][0]["ports"]}
        check = only(found, "Job")["spec"]["template"]
        self.check = End(name="check", namespace=RELEASE, labels=check["metadata"]["labels"])
        assert len(list(pod_templates(found))) == 2, "a pod of the chart that is not walked here"

    def deny_by_default(self, *namespaces: str) -> Cluster:
        """The same where everything is refused that no policy lets through."""
        spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        other = copy.copy(self)
        other.policies = [
            *self.policies,
            *({"metadata": {"namespace": name, "name": "deny"}, "spec": spec} for name in namespaces),
        ]
        return other

    def passes(self, source: End, destination: End, port: int, protocol: str = "TCP") -> bool:
        return passes(self.policies, source, destination, port, protocol)


@pytest.fixture(scope="module")
def cluster(render: Render) -> Cluster:
    return Cluster(render(None, **{"networkPolicy.workloads.namespaces": ["team-a", "team-b"]}))


def test_there_are_policies_for_the_chart_and_for_each_namespace(cluster: Cluster) -> None:
    names = [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in cluster.policies]
    assert len(names) == 6
    assert {(RELEASE, "instructpt-operator"), (RELEASE, "instructpt-operator-check")} < set(names)


def test_a_pod_of_every_stage_is_walked() -> None:
    assert {kind for kind, _ in WORKERS} == set(get_args(StageKind))
    assert {task for _, task in WORKERS} == {naming.TASK_WORK, naming.TASK_FINALIZE}
    assert {(kind, naming.TASK_FINALIZE) for kind in get_args(StageKind)} <= WORKERS.keys()


@EVERY_WORKER
def test_every_worker_is_selected_and_gets_what_it_needs(cluster: Cluster, worker: End) -> None:
    for denied in (cluster, cluster.deny_by_default(RELEASE, "team-a", "team-b")):
        assert denied.passes(denied.operator, worker, METRICS_PORT)
        assert denied.passes(PROMETHEUS, worker, METRICS_PORT)
        assert denied.passes(worker, S3, 443)
        for server in (DNS, NODE_DNS):
            assert denied.passes(worker, server, 53, "UDP")
            assert denied.passes(worker, server, 53)
        assert not denied.passes(STRANGER, worker, METRICS_PORT)
        assert not denied.passes(worker, S3, 80)
        assert not denied.passes(worker, METADATA, 80)
        assert not denied.passes(worker, API, 6443)


@pytest.mark.parametrize("port", [443, 6443])
def test_check_reaches_the_api_server_and_dns_alone(cluster: Cluster, port: int) -> None:
    for denied in (cluster, cluster.deny_by_default(RELEASE)):
        assert denied.passes(denied.check, API, port)
        assert denied.passes(denied.check, DNS, 53, "UDP")
        assert not denied.passes(denied.check, denied.operator, 8080)
        assert not denied.passes(denied.check, SYNTHESIS, METRICS_PORT)
        assert not denied.passes(STRANGER, denied.check, port)


@pytest.mark.parametrize(
    ("cloud", "address", "port"), [("eks", EKS_AGENT, 80), ("gke", METADATA, 80), ("gke", GKE, 988)]
)
def test_identity_endpoints_are_reached_on_request_alone(
    render: Render, cluster: Cluster, cloud: str, address: End, port: int
) -> None:
    asked = Cluster(
        render(
            None,
            **{"networkPolicy.workloads.namespaces": ["team-a"], f"networkPolicy.workloads.identity.{cloud}": True},
        )
    )
    for worker in WORKERS.values():
        assert asked.passes(worker, address, port)
        assert not asked.passes(worker, address, 8080)
        assert not cluster.passes(worker, address, port)
    assert not asked.passes(asked.operator, address, port)


def test_a_server_of_engine_openai_is_reached_on_request_alone(render: Render, cluster: Cluster) -> None:
    server = End(name="vllm", namespace="models", labels={"app": "vllm"})
    rule = {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}}}],
        "ports": [{"protocol": "TCP", "port": 8000}],
    }
    asked = Cluster(
        render(
            None,
            **{"networkPolicy.workloads.namespaces": ["team-a"], "networkPolicy.workloads.extraEgress": [rule]},
        )
    )
    assert asked.passes(SYNTHESIS, server, 8000)
    assert not cluster.passes(SYNTHESIS, server, 8000)


def test_without_policies_there_are_none_for_workloads_either(render: Render) -> None:
    found = render(None, **{"networkPolicy.enabled": False, "networkPolicy.workloads.namespaces": ["team-a"]})
    assert "NetworkPolicy" not in {item["kind"] for item in found}


@pytest.mark.parametrize("port", [443, 6443])
def test_operator_reaches_the_api_server(cluster: Cluster, port: int) -> None:
    assert cluster.passes(cluster.operator, API, port)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize("server", [DNS, NODE_DNS], ids=lambda end: end.name)
def test_operator_reaches_dns(cluster: Cluster, server: End, protocol: str) -> None:
    assert cluster.passes(cluster.operator, server, 53, protocol)


def test_scraper_reads_the_metrics_of_the_operator(cluster: Cluster) -> None:
    assert cluster.ports == {"metrics": 8080, "health": 8081}
    assert cluster.passes(PROMETHEUS, cluster.operator, 8080)


def test_kubelet_probes_the_operator(cluster: Cluster) -> None:
    assert cluster.passes(KUBELET, cluster.operator, 8081)


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
    outside = workers("team-c")["synthesize", "work"]
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
