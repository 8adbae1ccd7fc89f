from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from api_cases import CASES, MINIMAL, SECRETS, URIS, Case, located, locations, minimal, rule_of, rules

from instructpt.api.crd import crd
from instructpt.api.reasons import MEANING, Reason
from instructpt.api.runspec import ResolvedInput
from instructpt.api.transitions import POLICY
from instructpt.api.uris import CREDENTIALS_RULE, URI_RULES
from instructpt.api.v1alpha1 import KINDS
from instructpt.errors import ConfigError
from instructpt.local.spec_file import parse_resource
from instructpt.plan import plan_resource

# What refs of the cases name, as a cluster would find it.
ELSEWHERE = {
    ref: ResolvedInput(uri=f"s3://lab/{ref[1]}", digest=f"sha256:{'0' * 64}")
    for ref in (("Corpus", "c"), ("SynthesisJob", "s"), ("TrainingJob", "t"))
}
IDS = [f"{c.model}-{c.message}" for c in CASES]


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_objects_are_valid(kind: str) -> None:
    assert parse_resource(minimal(kind)).kind == kind


def test_every_rule_has_a_case() -> None:
    without = [
        (cls.__name__, rule.message)
        for cls, rule in rules()
        if not any(c.model == cls.__name__ and c.message in rule.message for c in CASES)
    ]
    assert not without


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_rule_accepts_and_refuses_in_python(case: Case) -> None:
    accepted = parse_resource(minimal(case.kind, **case.accepts))
    rule = rule_of(case)
    refused = minimal(case.kind, **case.refuses)
    if rule.holds is not None:
        with pytest.raises(ConfigError) as error:
            parse_resource(refused)
        assert rule.message in str(error.value)
        return
    plan_resource(accepted, {}, code_version="0", refs=ELSEWHERE)
    resource = parse_resource(refused)
    with pytest.raises(ConfigError) as error:  # the plan says it, with field and value
        plan_resource(resource, {}, code_version="0", refs=ELSEWHERE)
    assert error.value.field
    assert error.value.fix


@pytest.mark.parametrize("kind", KINDS)
def test_no_location_takes_credentials(kind: str) -> None:
    found = list(locations(kind))
    assert ("storage.uri", "place") in found
    for path, _ in found:
        for secret in SECRETS:
            with pytest.raises(ConfigError) as error:
                parse_resource(located(kind, path, secret))
            assert f"{path.replace('[]', '[0]')}: {CREDENTIALS_RULE.message}" in str(error.value)
            assert "secret" not in str(error.value).replace("secretRef", "")


def refusal(obj: dict[str, Any]) -> str:
    """What is said of an object; nothing of a valid one."""
    try:
        parse_resource(obj)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_location_takes_what_its_worker_reads_and_nothing_else(kind: str) -> None:
    for path, sort in locations(kind):
        takes, refuses = URIS[sort]
        said = f"{path.replace('[]', '[0]')}="
        for uri in refuses:
            with pytest.raises(ConfigError) as error:
                parse_resource(located(kind, path, uri))
            assert f"{said}{uri!r}: {URI_RULES[sort][1].message}" in str(error.value)
        for uri in takes:
            # Another rule may refuse the object, such as two models at once.
            assert said not in refusal(located(kind, path, uri)), uri


@pytest.mark.parametrize("kind", KINDS)
def test_every_location_is_checked_by_the_server(kind: str) -> None:
    root = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    nodes = dict(_nodes(root["properties"]["spec"], "spec"))
    found = list(locations(kind))
    assert len(found) > 2
    for path, sort in found:
        parent, _, name = f"spec.{path}".rpartition(".")
        said = [rule["message"] for rule in nodes[parent]["x-kubernetes-validations"]]
        for rule in URI_RULES[sort]:
            assert f"{name} {rule.message}" in said, path


def test_every_field_with_the_name_of_a_location_is_one() -> None:
    for kind in KINDS:
        root = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        marked = {path for path, _ in locations(kind)}
        for path, _ in _nodes(root["properties"]["spec"], ""):
            if path.rpartition(".")[2] in ("uri", "endpoint", "from", "model"):
                assert path.lstrip(".") in marked


def test_only_retain_is_offered_and_the_refusal_says_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match="cleanupPolicy='Delete': is not available yet; use Retain and remove the out"
    ):
        parse_resource(minimal("Corpus", cleanupPolicy="Delete"))


def test_a_rule_without_cel_is_about_values_of_any_type() -> None:
    """The server cannot look into such a field; every other rule stands in the CRD."""
    assert [rule.message.split(" ")[0] for _, rule in rules() if not rule.cel] == ["engine.args"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_spec_is_frozen_or_named_as_mutable(kind: str) -> None:
    spec = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    ruled = {r.message.split(" ")[0].removeprefix("spec.").split(".")[0] for r in KINDS[kind].rules}
    open_ = set(spec) - ruled
    more = {"SynthesisJob": {"parallelism", "completionPolicy"}, "TrainingJob": {"prepareParallelism"}}
    assert open_ == set(POLICY) | more.get(kind, set())


def test_in_a_pipeline_only_the_fields_that_may_change_are_left_out() -> None:
    ruled = {r.message.split(" ")[0] for r in KINDS["InstructionPretraining"].rules}
    assert {"spec.synthesis.shots", "spec.synthesis.engine", "spec.training.mixture", "spec.corpus"} <= ruled
    assert not {"spec.synthesis.parallelism", "spec.synthesis.completionPolicy", "spec.synthesis"} & ruled
    assert not {"spec.training.prepareParallelism", "spec.training"} & ruled


def _nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key, sign in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from _nodes(schema[key], f"{path}{sign}")


@pytest.mark.parametrize("kind", KINDS)
def test_everything_has_a_limit(kind: str) -> None:
    """The API server charges CEL for the largest object that the schema allows."""
    root = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in ("spec", "status"):
        for path, node in _nodes(root["properties"][part], part):
            if node.get("type") == "string":
                assert "maxLength" in node or "enum" in node or node.get("format") == "date-time", path
            if node.get("type") == "object" and "properties" not in node:
                assert "maxProperties" in node, path
            if node.get("type") == "array":
                assert "maxItems" in node, path


def test_scaling_is_a_subresource_of_synthesis_alone() -> None:
    with_scale = {k for k, kind in KINDS.items() if "scale" in crd(kind)["spec"]["versions"][0]["subresources"]}
    assert with_scale == {"SynthesisJob"}


def test_every_reason_has_a_line_in_the_docs_and_one_word() -> None:
    assert set(MEANING) == set(Reason)
    assert all(reason.value.isalpha() and reason.value[0].isupper() for reason in Reason)
    assert len({reason.value for reason in Reason}) == len(Reason)


@pytest.mark.parametrize("kind", MINIMAL)
def test_a_pod_template_keeps_the_names_of_kubernetes(kind: str) -> None:
    template = {
        "image": "example.com/worker:1",
        "imagePullSecrets": [{"name": "registry"}],
        "env": [
            {"name": "HF_HOME", "value": "/cache"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "resources": {"requests": {"cpu": "500m", "ephemeral-storage": "10Gi"}, "limits": {"memory": "8Gi"}},
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "8Gi"}},
            {"name": "ca", "configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ],
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "ca", "mountPath": "/ca", "readOnly": True},
        ],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    }
    resource = parse_resource(minimal(kind, podTemplate=template))
    assert resource.to_wire()["spec"]["podTemplate"] == template


@pytest.mark.parametrize("resources", [{"limits": {"nvidia.com/gpu": "1"}}, {"claims": []}])
def test_only_amounts_of_a_pod_are_set_in_its_template(resources: dict[str, Any]) -> None:
    """GPUs stand in the spec: plans and images go by them."""
    with pytest.raises(ConfigError, match="unknown field"):
        parse_resource(minimal("Corpus", podTemplate={"resources": resources}))


@pytest.mark.parametrize("field", ["hostNetwork", "initContainers", "securityContext", "hostPID"])
def test_what_leaves_the_sandbox_has_no_field(field: str) -> None:
    with pytest.raises(ConfigError, match="unknown field"):
        parse_resource(minimal("Corpus", podTemplate={field: True}))
    with pytest.raises(ConfigError, match="unknown field"):
        parse_resource(minimal("Corpus", podTemplate={"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}))
