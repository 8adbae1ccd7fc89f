"""The chart on a real API server: every object is accepted, the release installs, and its roles allow what they say."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import charts
import pytest
import yaml
from apiserver import ApiServer, KubectlError
from cluster import binaries
from releases import corpus, ensure_namespaces, helm

pytestmark = pytest.mark.cluster

PLURALS = ("corpora", "evaluationjobs", "instructionpretrainings", "synthesisjobs", "trainingjobs")
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


@pytest.fixture(scope="module")
def render() -> charts.Render:
    return charts.Render(charts.helm_or_skip())


def restrict(server: ApiServer, namespace: str) -> None:
    """Let the namespace refuse pods that Pod Security `restricted` refuses."""
    patch = {"metadata": {"labels": RESTRICTED}}
    status, answer = server.request(
        "PATCH", f"/api/v1/namespaces/{namespace}", patch, content_type="application/merge-patch+json"
    )
    assert status == 200, answer


@pytest.mark.parametrize("values", charts.CASES, ids=lambda path: path.stem)
def test_server_accepts_every_object(apiserver: ApiServer, namespace: str, render: charts.Render, values: Path) -> None:
    ensure_namespaces(apiserver, "team-a", "team-b")
    text = render.text(values, "--namespace", namespace)
    found = [item for item in yaml.safe_load_all(text) if item]
    assert {"Deployment", "ConfigMap", "Job"} <= {item["kind"] for item in found}
    stream = yaml.safe_dump_all(found)
    printed = apiserver.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=stream)
    assert printed.count("created (server dry run)") == len(found)
    assert "Warning" not in printed


def test_server_accepts_the_definitions_as_the_chart_installs_them(apiserver: ApiServer, render: charts.Render) -> None:
    crds = [item for item in render(None, crds=True) if item["kind"] == "CustomResourceDefinition"]
    printed = apiserver.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", input=yaml.safe_dump_all(crds)
    )
    assert printed.count("serverside-applied (server dry run)") == 5


@pytest.mark.parametrize("values", charts.CASES, ids=lambda path: path.stem)
def test_pods_run_where_only_restricted_ones_may(
    apiserver: ApiServer, namespace: str, render: charts.Render, values: Path
) -> None:
    restrict(apiserver, namespace)
    found = render(values, "--namespace", namespace)
    for number, template in enumerate(charts.pod_templates(found)):
        spec = {**template["spec"], "serviceAccountName": "default"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"bare-{number}"}, "spec": spec}
        spec.pop("priorityClassName", None)
        args = ("create", "--dry-run=server", f"--namespace={namespace}", "-f", "-")
        _until_default_account(apiserver, namespace)
        assert "Warning" not in apiserver.kubectl(*args, input=json.dumps(pod))
        spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        with pytest.raises(KubectlError, match="violates PodSecurity"):
            apiserver.kubectl(*args, input=json.dumps(pod))


def _until_default_account(server: ApiServer, namespace: str) -> None:
    server.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={namespace}", "--timeout=30s")


@pytest.fixture(scope="module")
def release(apiserver: ApiServer) -> Iterator[tuple[str, str]]:
    """(namespace, what helm printed) of an installed release, in a restricted namespace."""
    charts.helm_or_skip()
    if not binaries.is_ready(["helm"]):
        pytest.skip(binaries.NO_GO)
    namespace = "chart-release"
    ensure_namespaces(apiserver, namespace)
    restrict(apiserver, namespace)
    where = ("--namespace", namespace)
    # The definitions are there already, so the release takes them over.
    printed = helm(apiserver, "install", "instructpt", str(charts.CHART), *where, "--take-ownership")
    yield namespace, printed
    with contextlib.suppress(AssertionError):  # a test may have uninstalled it
        helm(apiserver, "uninstall", "instructpt", *where)


def test_notes_say_what_is_missing_and_end_with_what_is_next(apiserver: ApiServer, release: tuple[str, str]) -> None:
    namespace, printed = release
    # Other tests on this server may have installed it; both texts are also in the chart's unit tests.
    there = "pytorchjobs.kubeflow.org" in apiserver.kubectl("get", "crds", "-o", "name")
    assert ("PyTorchJob  found" if there else "PyTorchJob  MISSING") in printed
    assert "Kueue       not found" in printed
    assert "PodMonitor  not found" in printed
    assert f"Deployment {namespace}/instructpt-operator, in every namespace" in printed
    assert "Warning" not in printed
    assert "WARNING: nobody publishes instructpt/operator." in printed
    assert "`instructpt init demo` writes one" in printed
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    assert lines[-2:] == ["kubectl apply -n team-a -f pipeline.yaml", "kubectl get ipt -n team-a -w"]


def allowed(server: ApiServer, user: str, verb: str, what: str, *, namespace: str = "", name: str = "") -> bool:
    """As ``kubectl auth can-i``: ``what`` is ``group/resource[/subresource]``."""
    group, resource, subresource = [*what.split("/"), ""][:3]
    attributes = {
        "verb": verb,
        "group": group,
        "resource": resource,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
    status, answer = server.request(
        "POST",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "groups": ["system:authenticated"], "resourceAttributes": attributes}},
    )
    assert status == 201, answer
    is_allowed: bool = answer["status"]["allowed"]
    return is_allowed


NEEDED = [
    *((verb, f"instructpt.dev/{plural}") for plural in PLURALS for verb in ("get", "list", "watch", "patch", "delete")),
    *(("create", f"instructpt.dev/{plural}") for plural in PLURALS if plural != "instructionpretrainings"),
    *(("patch", f"instructpt.dev/{plural}/status") for plural in PLURALS),
    *(("update", f"instructpt.dev/{plural}/finalizers") for plural in PLURALS),
    *((verb, "batch/jobs") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *((verb, "kubeflow.org/pytorchjobs") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *((verb, "/configmaps") for verb in ("get", "create")),
    *((verb, "/pods") for verb in ("get", "list")),
    *((verb, "events.k8s.io/events") for verb in ("create", "patch")),
]
EVERY_VERB = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*")
REFUSED = [
    *((verb, "/secrets") for verb in EVERY_VERB),
    *((verb, "*/*") for verb in EVERY_VERB),
    *((verb, "/pods") for verb in ("watch", "create", "update", "patch", "delete")),
    *((verb, "/pods/exec") for verb in ("create", "get")),
    ("get", "/pods/log"),
    *((verb, "/configmaps") for verb in ("list", "watch", "update", "patch", "delete")),
    *((verb, "/nodes") for verb in ("get", "list")),
    ("create", "/serviceaccounts/token"),
    *((verb, "rbac.authorization.k8s.io/clusterroles") for verb in ("bind", "escalate", "create", "get")),
    ("impersonate", "/users"),
    ("create", "instructpt.dev/instructionpretrainings"),
    ("deletecollection", "instructpt.dev/corpora"),
    ("update", "batch/jobs"),
]


def test_operator_may_do_what_it_needs_in_any_namespace(apiserver: ApiServer, release: tuple[str, str]) -> None:
    user = f"system:serviceaccount:{release[0]}:instructpt-operator"
    refused = [(verb, what) for verb, what in NEEDED if not allowed(apiserver, user, verb, what, namespace="default")]
    assert refused == []


def test_operator_may_do_nothing_else(apiserver: ApiServer, release: tuple[str, str]) -> None:
    user = f"system:serviceaccount:{release[0]}:instructpt-operator"
    for namespace in ("", "default", "kube-system", release[0]):
        granted = [(verb, what) for verb, what in REFUSED if allowed(apiserver, user, verb, what, namespace=namespace)]
        assert granted == [], namespace


def test_kubectl_shows_no_wildcard_and_no_secret(apiserver: ApiServer, release: tuple[str, str]) -> None:
    user = f"--as=system:serviceaccount:{release[0]}:instructpt-operator"
    printed = apiserver.kubectl("auth", "can-i", "--list", user, f"--namespace={release[0]}", "--no-headers")
    resources = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert "jobs.batch" in resources
    assert "secrets" not in printed
    assert not any("*" in line.rpartition("[")[2] or line.startswith("*") for line in printed.splitlines())


def test_lease_is_granted_by_name(apiserver: ApiServer, release: tuple[str, str]) -> None:
    user, leases = f"system:serviceaccount:{release[0]}:instructpt-operator", "coordination.k8s.io/leases"
    for verb in ("get", "update"):
        assert allowed(apiserver, user, verb, leases, namespace=release[0], name="instructpt-operator")
        assert not allowed(apiserver, user, verb, leases, namespace=release[0], name="another")
        assert not allowed(apiserver, user, verb, leases, namespace="default", name="instructpt-operator")
    assert allowed(apiserver, user, "create", leases, namespace=release[0])
    assert not allowed(apiserver, user, "list", leases, namespace=release[0])


WRITE = ("create", "update", "patch", "delete", "deletecollection")


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("view", ("get", "list", "watch"), WRITE),
        ("edit", ("get", "list", "watch", *WRITE), ()),
        ("admin", ("get", "list", "watch", *WRITE), ()),
    ],
)
def test_built_in_roles_gain_our_kinds(
    apiserver: ApiServer, namespace: str, release: tuple[str, str], role: str, may: tuple[str, ...],
    may_not: tuple[str, ...],
) -> None:  # fmt: skip
    """By aggregation: a controller of Kubernetes copies the rules of the chart's roles into its own."""
    user = f"{role}-of-{namespace}"
    assert not allowed(apiserver, user, "get", "instructpt.dev/corpora", namespace=namespace)
    apiserver.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", f"-n={namespace}")
    waiting = threading.Event()
    for _ in range(150):
        if allowed(apiserver, user, may[-1], f"instructpt.dev/{PLURALS[-1]}", namespace=namespace):
            break
        waiting.wait(0.2)
    for plural in PLURALS:
        what = f"instructpt.dev/{plural}"
        assert [verb for verb in may if not allowed(apiserver, user, verb, what, namespace=namespace)] == []
        assert [verb for verb in may_not if allowed(apiserver, user, verb, what, namespace=namespace)] == []
        # The status is the operator's to write.
        assert allowed(apiserver, user, "get", f"{what}/status", namespace=namespace)
        assert not allowed(apiserver, user, "patch", f"{what}/status", namespace=namespace)
        assert not allowed(apiserver, user, "get", what, namespace="default")


def test_an_editor_creates_a_corpus_and_a_viewer_does_not(
    apiserver: ApiServer, namespace: str, release: tuple[str, str]
) -> None:
    for role in ("view", "edit"):
        user = f"{role}-of-{namespace}"
        apiserver.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", f"-n={namespace}")

    def create(role: str) -> str:
        text, user = json.dumps(corpus("mine")), f"--as={role}-of-{namespace}"
        return apiserver.kubectl("create", "-f", "-", f"-n={namespace}", user, input=text)

    with pytest.raises(KubectlError, match="cannot create resource"):
        create("view")
    assert "created" in create("edit")
    shown = apiserver.kubectl("get", "corp", "mine", f"-n={namespace}", f"--as=view-of-{namespace}", "-o", "name")
    assert shown.strip() == "corpus.instructpt.dev/mine"


def test_with_namespaces_the_operator_is_blind_elsewhere(
    apiserver: ApiServer, namespace: str, render: charts.Render
) -> None:
    ensure_namespaces(apiserver, "chart-watched")
    name = f"scoped-{namespace}"
    found = render(None, "--namespace", namespace, watchNamespaces=["chart-watched"], fullnameOverride=name[:40])
    roles = [item for item in found if item["kind"] in {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}]
    mine = [item for item in roles if "aggregate-to" not in json.dumps(item["metadata"])]
    assert {item["kind"] for item in mine} == {"Role", "RoleBinding"}
    apiserver.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(mine))
    user = f"system:serviceaccount:{namespace}:{name[:40]}"
    for verb, what in NEEDED:
        assert allowed(apiserver, user, verb, what, namespace="chart-watched"), (verb, what)
        assert not allowed(apiserver, user, verb, what, namespace="default"), (verb, what)
        assert not allowed(apiserver, user, verb, what), (verb, what)


# --- the check of `helm test`


@pytest.fixture
def check(apiserver: ApiServer, namespace: str, render: charts.Render, tmp_path: Path) -> dict[str, str]:
    """Environment of the check's pod, with the rights of its service account alone."""
    found = render(None, "--namespace", namespace)
    hooks = [item for item in found if "helm.sh/hook" in item["metadata"].get("annotations", {})]
    (job,) = [item for item in hooks if item["kind"] == "Job"]
    apiserver.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(item for item in hooks if item is not job))
    account = job["spec"]["template"]["spec"]["serviceAccountName"]
    token = apiserver.kubectl("create", "token", account, f"--namespace={namespace}").strip()
    config = yaml.safe_load(apiserver.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env["CHECK_NAMESPACE"] == namespace
    (tmp_path / "check.py").write_text(container["args"][0])
    return {**env, "KUBECONFIG": str(tmp_path / "kubeconfig"), "SCRIPT": str(tmp_path / "check.py")}


def run_check(env: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, env["SCRIPT"]]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **env, **more}, capture_output=True, text=True, timeout=120
    )


@contextlib.contextmanager
def operator(server: ApiServer, namespace: str, *, sets_status: bool) -> Iterator[None]:
    """Stands in for the operator: renews the Lease and, if told so, sets the phase of each Corpus."""
    done = threading.Event()
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    corpora = f"/apis/instructpt.dev/v1alpha1/namespaces/{namespace}/corpora"
    merge = "application/merge-patch+json"

    def act() -> None:
        count = 0
        while not done.wait(0.3):
            count += 1
            patch = {"spec": {"renewTime": f"2026-01-01T00:00:{count % 60:02}.000000Z"}}
            server.request("PATCH", f"{leases}/instructpt-operator", patch, content_type=merge)
            for item in server.request("GET", corpora)[1]["items"] if sets_status else ():
                url = f"{corpora}/{item['metadata']['name']}/status"
                server.request("PATCH", url, {"status": {"phase": "Suspended"}}, content_type=merge)

    body = {"metadata": {"name": "instructpt-operator"}, "spec": {"holderIdentity": "pod-1"}}
    assert server.request("POST", leases, body)[0] == 201
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def corpora_left(server: ApiServer, namespace: str) -> list[str]:
    _, answer = server.request("GET", f"/apis/instructpt.dev/v1alpha1/namespaces/{namespace}/corpora")
    return [item["metadata"]["name"] for item in answer["items"]]


def test_check_passes_beside_an_operator_that_acts(apiserver: ApiServer, namespace: str, check: dict[str, str]) -> None:
    with operator(apiserver, namespace, sets_status=True):
        done = run_check(check, CHECK_TIMEOUT_SECONDS="60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: ") == 3
    assert corpora_left(apiserver, namespace) == []


def test_check_fails_where_nobody_leads(check: dict[str, str]) -> None:
    done = run_check(check, CHECK_TIMEOUT_SECONDS="3")
    assert done.returncode == 1
    assert "failed: lease" in done.stderr


def test_check_fails_and_cleans_up_where_the_leader_does_not_act(
    apiserver: ApiServer, namespace: str, check: dict[str, str]
) -> None:
    with operator(apiserver, namespace, sets_status=False):
        done = run_check(check, CHECK_TIMEOUT_SECONDS="10")
    assert done.returncode == 1
    assert "failed: the operator set the status" in done.stderr
    assert corpora_left(apiserver, namespace) == []


# --- the same without Helm


def test_the_plain_manifests_are_applied_by_kustomize(apiserver: ApiServer) -> None:
    """As the docs say it, in a cluster where nothing is yet but the namespace: a dry run makes none."""
    ensure_namespaces(apiserver, "instructpt-system")
    folder = str(charts.ROOT / "manifests")
    apply = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", folder)
    printed = apiserver.kubectl(*apply)
    listed = yaml.safe_load((charts.ROOT / "manifests" / "kustomization.yaml").read_text())["resources"]
    objects = [o for name in listed for o in yaml.safe_load_all((charts.ROOT / "manifests" / name).read_text()) if o]
    assert printed.count("serverside-applied (server dry run)") == len(objects) > 15
    assert "Warning" not in printed


# --- life of a release; last, since it ends the release


def test_release_upgrades_and_leaves_objects_when_it_goes(apiserver: ApiServer, release: tuple[str, str]) -> None:
    namespace, _ = release
    where = ("--namespace", namespace)
    keep = f"/apis/instructpt.dev/v1alpha1/namespaces/{namespace}/corpora"
    assert apiserver.request("POST", keep, corpus("kept"))[0] == 201
    get = ("get", "deployment", "instructpt-operator", f"--namespace={namespace}", "-o", "json")
    before = json.loads(apiserver.kubectl(*get))
    again = helm(apiserver, "upgrade", "instructpt", str(charts.CHART), *where, "--reuse-values")
    assert "deployed" in again
    assert json.loads(apiserver.kubectl(*get))["metadata"]["generation"] == before["metadata"]["generation"]
    helm(
        apiserver, "upgrade", "instructpt", str(charts.CHART), *where, "--reuse-values", "--set", "controller.workers=6"
    )
    after = json.loads(apiserver.kubectl(*get))
    assert after["metadata"]["generation"] > before["metadata"]["generation"]
    helm(apiserver, "uninstall", "instructpt", *where)
    left = apiserver.kubectl("get", "deploy,svc,role,rolebinding,networkpolicy,pdb", "-o", "name", f"-n={namespace}")
    assert left.strip() in {"", f"No resources found in {namespace} namespace."}
    crd = json.loads(apiserver.kubectl("get", "crd", "corpora.instructpt.dev", "-o", "json"))
    assert crd["metadata"]["annotations"]["meta.helm.sh/release-name"] == "instructpt"
    assert "deletionTimestamp" not in crd["metadata"]
    assert apiserver.request("GET", f"{keep}/kept")[0] == 200
