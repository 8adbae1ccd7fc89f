"""The chart, rendered by a real helm: what it holds, what it refuses, and whether what is generated is up to date."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from charts import (
    CASES,
    CHART,
    FULL,
    MONITORS,
    NAMESPACED,
    ROOT,
    Manifest,
    Render,
    is_extra,
    only,
    pod_templates,
    settings,
    tool,
)
from cluster import binaries

from instructpt.cluster import context
from instructpt.plan import naming
from instructpt_operator.settings import Settings, load_settings

GOLDEN = Path(__file__).parent / "golden" / "chart-default.yaml"


# --- what is generated


def test_schema_and_table_of_values_are_up_to_date() -> None:
    stale = [path.name for path, text in tool("chart").outputs().items() if path.read_text() != text]
    assert stale == [], "run make generate"


def test_plain_manifests_are_the_rendered_chart(helm: Path) -> None:
    made = tool("manifests").outputs(helm)
    assert [str(path) for path, text in made.items() if not path.exists() or path.read_text() != text] == []
    there = {path for folder in ("operator", "rbac") for path in (ROOT / "manifests" / folder).glob("*.yaml")}
    assert there == {path for path in made if path.name != "kustomization.yaml"}


def test_default_rendering_is_the_golden_one(render: Render) -> None:
    text = yaml.safe_dump_all(render(), sort_keys=True, width=110)
    if os.environ.get("GOLDEN_UPDATE"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "if this change is meant: GOLDEN_UPDATE=1 pytest tests/contract/test_chart.py"


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_two_renderings_are_the_same_bytes(render: Render, values: Path) -> None:
    args = ("--values", str(values), *MONITORS)
    assert render.anew(*args) == render.anew(*args, again=True)


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_lint_finds_nothing(helm: Path, values: Path) -> None:
    command = [str(helm), "lint", "--strict", "--kube-version", "1.36", "--values", str(values), str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


def test_chart_refuses_a_cluster_that_is_too_old(helm: Path) -> None:
    command = [str(helm), "template", "instructpt", str(CHART), "--kube-version", "1.30.9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


def test_suites_of_helm_unittest_pass(helm: Path) -> None:
    if not binaries.is_ready(["helm-unittest"]):
        pytest.skip(binaries.NO_GO)
    command = [str(binaries.path("helm-unittest")), "--strict", "--color=false", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (count,) = re.findall(r"^Tests: +(\d+) passed, \d+ total$", done.stdout, re.MULTILINE)
    assert int(count) >= 61
    (snapshots,) = re.findall(r"^Snapshot: +(\d+) passed, \d+ total$", done.stdout, re.MULTILINE)
    assert int(snapshots) >= 15, "the default installation is no snapshot"


# --- values


def schemas(schema: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from schemas(child, f"{path}{name}.")


def test_every_value_has_a_description_a_type_and_a_closed_schema() -> None:
    found = dict(schemas(json.loads((CHART / "values.schema.json").read_text())))
    leaves = {path: child for path, child in found.items() if "properties" not in child}
    assert len(leaves) > 70
    assert [path for path, child in leaves.items() if len(child.get("description", "")) < 8] == []
    assert [path for path, child in found.items() if "type" not in child] == []
    assert [path for path, child in leaves.items() if child["type"] == "array" and "items" not in child] == []
    opened = {path for path, child in found.items() if child.get("additionalProperties") is True}
    # Objects of Kubernetes itself, which the API server checks, and what Helm hands to every chart.
    assert opened == {"global", "resources", "affinity", "check.resources"}
    objects = {path for path, child in found.items() if child["type"] == "object"}
    assert all("additionalProperties" in found[path] for path in objects)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("typo", 1),
        ("image", {"repo": "x"}),
        ("image", {"digest": "sha256:abc"}),
        ("image", {"repository": ""}),
        ("image", {"pullPolicy": "Sometimes"}),
        ("images", {"evaluator": {}}),
        ("replicas", -1),
        ("replicas", "2"),
        ("replicas", 1.5),
        ("watchNamespaces", "team-a"),
        ("watchNamespaces", ["Team_A"]),
        ("watchNamespaces", ["a", "a"]),
        ("controller", {"workers": 0}),
        ("controller", {"launcher": "trainjob"}),
        ("controller", {"client": {"qps": 0}}),
        ("lease", {"durationSeconds": "15s"}),
        ("metrics", {"port": 80}),
        ("metrics", {"podMonitor": {"interval": "often"}}),
        ("podDisruptionBudget", {"minAvailable": "half"}),
        ("podDisruptionBudget", {"minAvailable": 0}),
        ("imagePullSecrets", ["name"]),
        ("commonLabels", {"a": 1}),
        ("networkPolicy", {"enabled": "yes"}),
        ("networkPolicy", {"apiServer": {"ports": []}}),
        ("admissionPolicy", {"actions": []}),
        ("admissionPolicy", {"actions": ["Maybe"]}),
        ("check", {"timeoutSeconds": 0}),
        ("fullnameOverride", "x" * 41),
    ],
)
def test_schema_refuses(key: str, value: Any) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: value}, schema)


def test_helm_itself_applies_the_schema(render: Render) -> None:
    with pytest.raises(RuntimeError, match="typo"):
        render(typo=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lease.enabled": False}, "more than one replica"),
        ({"lease.renewDeadlineSeconds": 15}, "renewDeadlineSeconds"),
        ({"lease.retrySeconds": 10}, "retrySeconds"),
        ({"metrics.port": 8081}, "are the same"),
        ({"metrics.serviceMonitor.enabled": True, "metrics.service.enabled": False}, "metrics.service.enabled"),
    ],
)
def test_chart_refuses_values_that_contradict(render: Render, keys: Manifest, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        render(**keys)


# --- objects


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_every_object_has_a_unique_name_labels_and_a_namespace_where_it_needs_one(render: Render, values: Path) -> None:
    found = [item for item in render(values, *MONITORS) if not is_extra(item)]
    keys = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in found]
    assert len(set(keys)) == len(keys)
    cluster_wide = {
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    assert [key for key in keys if (key[1] is None) != (key[0] in cluster_wide)] == []
    for item in found:
        assert len(item["metadata"]["name"]) <= 63 or item["kind"] in cluster_wide
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "instructpt"
        assert labels["app.kubernetes.io/instance"] == "instructpt"
        assert labels["helm.sh/chart"].startswith("instructpt-")


def test_common_labels_are_on_every_object_and_pod(render: Render) -> None:
    found = [item for item in render(FULL, *MONITORS, crds=True) if not is_extra(item)]
    assert [item["metadata"]["name"] for item in found if item["metadata"]["labels"].get("team") != "nlp"] == []
    deployment = only(found, "Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "nlp"
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]


def test_common_and_pod_labels_cannot_break_the_selector(render: Render) -> None:
    evil = {"app.kubernetes.io/component": "other"}
    deployment = only(render(podLabels=evil, commonLabels={"x": "y"}), "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_pods_are_restricted_with_a_read_only_root(render: Render, values: Path) -> None:
    found = list(pod_templates(render(values)))
    assert len(found) == 2
    for template in found:
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} <= {"configMap", "emptyDir"}
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_operator_is_probed_on_its_ports_and_stops_in_time(render: Render) -> None:
    spec = only(render(), "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["instructpt-operator"]
    assert container["args"] == ["--config", "/etc/instructpt/operator/config.yaml"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"metrics": 8080, "health": 8081}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert spec["terminationGracePeriodSeconds"] == 30


def test_there_are_two_replicas_a_budget_and_a_spread(render: Render) -> None:
    found = render()
    deployment = only(found, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    budget = only(found, "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert budget["selector"]["matchLabels"] == selector
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == selector
    assert spread["topologyKey"] == "kubernetes.io/hostname"


def test_a_spread_of_the_user_gets_a_selector(render: Render) -> None:
    deployment = only(render(FULL), "Deployment")["spec"]
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"] == deployment["selector"]
    own = {"topologyKey": "a", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    spec = only(render(topologySpreadConstraints=[own]), "Deployment")["spec"]["template"]["spec"]
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "a"


def test_a_budget_never_blocks_the_drain_of_a_single_replica(render: Render) -> None:
    assert "PodDisruptionBudget" not in {item["kind"] for item in render(replicas=1)}


def test_a_change_of_settings_starts_new_pods_and_nothing_else_does(render: Render) -> None:
    def checksum(**keys: Any) -> str:
        meta = only(render(**keys), "Deployment")["spec"]["template"]["metadata"]
        text: str = meta["annotations"]["checksum/config"]
        return text

    assert checksum() == checksum(**{"networkPolicy.enabled": False})
    assert checksum() != checksum(**{"controller.workers": 6})


def test_images_take_registry_tag_and_digest(render: Render) -> None:
    found = render(FULL)
    image = only(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example.com/instructpt/operator@sha256:{'0' * 64}"
    images = settings(found)["images"]
    assert images["operator"]["cpu"] == image
    assert images["trainer"]["cuda"] == "registry.example.com/mirror/trainer:v1"
    assert images["synthesizer"]["cpu"] == "registry.example.com/instructpt/synthesizer:0.1.0-cpu"


def test_default_images_are_those_of_the_code(render: Render) -> None:
    images = settings(render())["images"]
    assert images.pop("pullPolicy") == context.DEFAULT_IMAGES.pull_policy
    flat = {(role, kind): image for role, kinds in images.items() for kind, image in kinds.items()}
    assert flat == dict(context.DEFAULT_IMAGES.by_role)


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_operator_reads_the_settings_of_the_chart(render: Render, values: Path, tmp_path: Path) -> None:
    found = settings(render(values))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(found))
    read = load_settings(path, {}).model_dump(mode="json", by_alias=True)
    read["images"]["operator"].pop("cuda")
    assert read == found  # each setting comes from the chart, and each value arrives


def test_default_settings_of_chart_and_operator_are_the_same(render: Render, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(render())))
    read = load_settings(path, {}).model_dump()
    default = Settings().model_dump()
    assert read["lease"].pop("namespace") == "instructpt-system"
    default["lease"].pop("namespace")
    assert read == default


def test_monitors_need_their_kinds(render: Render) -> None:
    values = FULL
    kinds = {"PodMonitor", "ServiceMonitor"}
    assert not kinds & {item["kind"] for item in render(values)}
    assert not kinds & {item["kind"] for item in render(None, *MONITORS)}
    found = render(values, *MONITORS)
    assert kinds <= {item["kind"] for item in found}
    assert only(found, "PodMonitor")["metadata"]["labels"]["release"] == "prometheus"
    service = only(found, "Service")
    monitor = only(found, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_operator_is_scraped_once(render: Render) -> None:
    names = [
        item["metadata"]["name"]
        for item in render(None, *MONITORS, **{"metrics.podMonitor.enabled": True})
        if item["kind"] == "PodMonitor"
    ]
    assert sorted(names) == ["instructpt-operator", "instructpt-operator-workloads"]
    both = render(FULL, *MONITORS)
    assert [item["metadata"]["name"] for item in both if item["kind"] == "PodMonitor"] == [
        "instructpt-operator-workloads"
    ]


def test_selectors_of_workloads_are_the_labels_that_we_set(render: Render) -> None:
    found = render(None, *MONITORS, **{"metrics.podMonitor.enabled": True})
    selector = only(found, "PodMonitor", "workloads")["spec"]["selector"]["matchLabels"]
    assert selector == {naming.MANAGED_BY: naming.OPERATOR}
    targets = only(found, "PodMonitor", "workloads")["spec"]["podTargetLabels"]
    assert set(targets) == {naming.LABEL_KIND, naming.LABEL_NAME, naming.LABEL_STEP}


def test_definitions_can_be_left_out_and_stay_at_uninstall(render: Render) -> None:
    crds = [item for item in render(crds=True) if item["kind"] == "CustomResourceDefinition"]
    assert len(crds) == 5
    assert {item["metadata"]["annotations"]["helm.sh/resource-policy"] for item in crds} == {"keep"}
    dropped = [item for item in render(crds=True, **{"crds.keep": False}) if item["kind"] == crds[0]["kind"]]
    assert not any("annotations" in item["metadata"] for item in dropped)
    assert "CustomResourceDefinition" not in {item["kind"] for item in render(crds=False)}


def test_extra_objects_come_as_objects_and_as_templates(render: Render) -> None:
    extra = [item for item in render(FULL) if is_extra(item)]
    assert [(item["metadata"]["name"], item["data"]["from"]) for item in extra] == [
        ("extra", "object"),
        ("instructpt-text", "text"),
    ]


def test_long_names_stay_within_the_limits(helm: Path) -> None:
    manifests = tool("manifests")
    command = [str(helm), "template", "r" * 53, str(CHART), "--namespace", "n" * 63, "--kube-version", "1.36"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = manifests.objects(done.stdout)
    assert max(len(item["metadata"]["name"]) for item in found if "namespace" in item["metadata"]) <= 63
    assert all(not item["metadata"]["name"].endswith("-") for item in found)


# --- roles


def rules(found: list[Manifest], *, of_operator: bool = True) -> Iterator[tuple[str, str, tuple[str, ...], Manifest]]:
    """(group, resource, verbs, rule) of the operator's roles, or of all."""
    for item in found:
        if item["kind"] not in {"Role", "ClusterRole"}:
            continue
        is_users = any("aggregate-to" in label for label in item["metadata"]["labels"])
        is_check = "helm.sh/hook" in item["metadata"].get("annotations", {})
        if of_operator and (is_users or is_check):
            continue
        for rule in item["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield group, resource, tuple(rule["verbs"]), rule


@pytest.mark.parametrize("values", CASES, ids=lambda path: path.stem)
def test_no_role_has_a_wildcard_a_verb_on_secrets_or_a_way_up(render: Render, values: Path) -> None:
    found = list(rules(render(values), of_operator=False))
    assert found
    text = json.dumps([rule for *_, rule in found])
    assert "*" not in text
    forbidden = {"secrets", "serviceaccounts/token", "pods/exec", "pods/attach", "nodes", "roles", "rolebindings"}
    assert not forbidden & {resource for _, resource, *_ in found}
    assert not {"escalate", "bind", "impersonate"} & {verb for _, _, verbs, _ in found for verb in verbs}
    bindings = [item for item in render(values) if item["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert "cluster-admin" not in {item["roleRef"]["name"] for item in bindings}


def test_operator_reads_pods_and_never_watches_them(render: Render) -> None:
    assert [verbs for group, resource, verbs, _ in rules(render()) if resource == "pods"] == [("get", "list")]


def test_operator_reaches_every_kind_and_its_subresources(render: Render) -> None:
    crds = [yaml.safe_load(path.read_text()) for path in (ROOT / "manifests" / "crds").glob("*.yaml")]
    plurals = {crd["spec"]["names"]["plural"] for crd in crds}
    granted = {resource: set(verbs) for group, resource, verbs, _ in rules(render()) if group == "instructpt.dev"}
    assert granted.keys() == {f"{plural}{part}" for plural in plurals for part in ("", "/status", "/finalizers")}
    for plural in plurals:
        assert {"get", "list", "watch", "patch", "delete"} <= granted[plural]
        assert granted[f"{plural}/finalizers"] == {"update"}
        assert granted[f"{plural}/status"] == {"patch"}
    # Pipelines come from users alone.
    assert {plural for plural in plurals if "create" not in granted[plural]} == {"instructionpretrainings"}


def test_lease_is_limited_by_name_but_for_create(render: Render) -> None:
    found = {verbs: rule.get("resourceNames") for _, resource, verbs, rule in rules(render()) if resource == "leases"}
    assert found == {("get", "update"): ["instructpt-operator"], ("create",): None}


def test_with_namespaces_there_is_no_cluster_role_for_the_operator(render: Render) -> None:
    found = render(NAMESPACED)
    assert "ClusterRoleBinding" not in {item["kind"] for item in found}
    roles = [item for item in found if item["kind"] == "Role" and "/hook" not in json.dumps(item["metadata"])]
    by_namespace = {item["metadata"]["namespace"]: item["rules"] for item in roles}
    assert by_namespace.keys() == {"team-a", "team-b", "instructpt-system"}
    assert by_namespace["team-a"] == by_namespace["team-b"] == only(render(), "ClusterRole", "operator")["rules"]
    subjects = [item["subjects"] for item in found if item["kind"] == "RoleBinding" and "check" not in str(item)]
    assert all(
        subject == [{"kind": "ServiceAccount", "name": "existing", "namespace": "instructpt-system"}]
        for subject in subjects
    )
    assert settings(found)["watchNamespaces"] == ["team-a", "team-b"]


def test_users_roles_aggregate_and_view_writes_nothing(render: Render) -> None:
    roles = {
        label.rpartition("-")[2]: item["rules"]
        for item in render()
        if item["kind"] == "ClusterRole"
        for label in item["metadata"]["labels"]
        if "aggregate-to" in label
    }
    assert roles.keys() == {"view", "edit", "admin"}
    assert {verb for rule in roles["view"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert roles["edit"] == roles["admin"]


# --- the check


def test_check_runs_with_helm_test_and_after_install_on_request(render: Render) -> None:
    hook = "helm.sh/hook"
    assert only(render(), "Job")["metadata"]["annotations"][hook] == "test"
    asked = only(render(**{"check.enabled": True}), "Job")["metadata"]["annotations"][hook]
    assert asked == "test,post-install,post-upgrade"


def test_check_is_the_file_of_the_chart_and_works_where_the_operator_does(render: Render) -> None:
    (container,) = only(render(), "Job")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [(CHART / "files" / "check.py").read_text()]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env["CHECK_LEASE"] == "instructpt-system/instructpt-operator"
    assert env["CHECK_NAMESPACE"] == "instructpt-system"
    (other,) = only(render(watchNamespaces=["team-a"]), "Job")["spec"]["template"]["spec"]["containers"]
    assert {"name": "CHECK_NAMESPACE", "value": "team-a"} in other["env"]


def test_pods_of_the_check_are_not_selected_as_operators(render: Render) -> None:
    found = render()
    selector = only(found, "Deployment")["spec"]["selector"]["matchLabels"]
    labels = only(found, "Job")["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_texts_name_only_values_that_exist() -> None:
    paths = {path for path, _ in schemas(json.loads((CHART / "values.schema.json").read_text()))}
    pages = [CHART / "templates" / "NOTES.txt", *(ROOT / "docs" / "operator-guides").glob("*.md"), CHART / "README.md"]
    for page in pages:
        tops = {path.partition(".")[0] for path in paths}
        named = set(re.findall(rf"`((?:{'|'.join(tops)})\.[A-Za-z.]+)`", page.read_text()))
        assert named - paths == set(), page
