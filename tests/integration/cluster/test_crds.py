"""The CRDs on a real API server: what it accepts, refuses, fills in and lets change."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from api_cases import CASES, COUNTS, MINIMAL, SECRETS, URIS, Case, located, locations, minimal, rule_of

from instructpt.api.crd import NAME_RULE, crd
from instructpt.api.uris import CREDENTIALS_RULE, URI_RULES
from instructpt.api.v1alpha1 import KINDS
from instructpt.local.spec_file import parse_resource

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

STARTED = {"startTime": "2026-01-01T00:00:00Z", "phase": "Running"}
STAGE = {"step": "corpus", "key": "k"}
SUSPENDED = {"phase": "Suspended", "stages": [STAGE]}


def path(namespace: str, kind: str, name: str = "", sub: str = "") -> str:
    parts = ["/apis/instructpt.dev/v1alpha1/namespaces", namespace, KINDS[kind].plural, name, sub]
    return "/".join(p for p in parts if p)


def dry(server: ApiServer, namespace: str, obj: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return server.request("POST", path(namespace, obj["kind"]) + "?dryRun=All&fieldValidation=Strict", obj)


def create(server: ApiServer, namespace: str, obj: dict[str, Any], status: dict[str, Any] | None = None) -> None:
    code, answer = server.request("POST", path(namespace, obj["kind"]) + "?fieldValidation=Strict", obj)
    assert code == 201, answer
    if status is not None:
        where = path(namespace, obj["kind"], obj["metadata"]["name"], "status") + "?fieldValidation=Strict"
        code, answer = server.request("PATCH", where, {"status": status}, content_type="application/merge-patch+json")
        assert code == 200, answer


def edit(server: ApiServer, namespace: str, kind: str, spec: dict[str, Any], name: str = "x") -> list[str] | None:
    """Try to change fields of a spec: ``None`` if it is let through, else what the server says."""
    where = path(namespace, kind, name) + "?dryRun=All&fieldValidation=Strict"
    code, answer = server.request("PATCH", where, {"spec": spec}, content_type="application/merge-patch+json")
    return None if code == 200 else messages(answer)


def messages(answer: dict[str, Any]) -> list[str]:
    """The messages of the rules that an object breaks."""
    assert answer["code"] == 422, answer
    return [cause["message"].removeprefix("Invalid value: ") for cause in answer["details"]["causes"]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_server_fills_in_is_what_pydantic_fills_in(apiserver: ApiServer, namespace: str, kind: str) -> None:
    code, answer = dry(apiserver, namespace, minimal(kind))
    assert code == 201, answer
    assert answer["spec"] == parse_resource(minimal(kind)).to_wire()["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_pydantic_writes_the_server_takes_unchanged(apiserver: ApiServer, namespace: str, kind: str) -> None:
    obj = parse_resource(minimal(kind, podTemplate={"env": [{"name": "A", "value": "1"}]})).to_wire()
    code, answer = dry(apiserver, namespace, obj)
    assert code == 201, answer
    assert answer["spec"] == obj["spec"]


@pytest.mark.parametrize("case", CASES, ids=[f"{c.model}-{c.message}" for c in CASES])
def test_a_rule_accepts_and_refuses_on_the_server_in_the_words_of_python(
    apiserver: ApiServer, namespace: str, case: Case
) -> None:
    rule = rule_of(case)
    code, answer = dry(apiserver, namespace, minimal(case.kind, **case.accepts))
    assert code == 201, answer
    code, answer = dry(apiserver, namespace, minimal(case.kind, **case.refuses))
    if rule.cel:
        assert rule.message in messages(answer)
    else:
        assert code == 201, "the server cannot check it; the operator does, before anything starts"


@pytest.mark.parametrize("kind", KINDS)
def test_no_location_takes_credentials_and_none_is_repeated(apiserver: ApiServer, namespace: str, kind: str) -> None:
    for path, _ in locations(kind):
        for secret in SECRETS if path == "storage.uri" else SECRETS[:2]:
            code, answer = dry(apiserver, namespace, located(kind, path, secret))
            assert code == 422, (path, secret)
            assert f"{path.rpartition('.')[2]} {CREDENTIALS_RULE.message}" in messages(answer)
            assert "secret" not in answer["message"].replace("secretRef", ""), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_location_is_one_that_workers_can_read(apiserver: ApiServer, namespace: str, kind: str) -> None:
    seen: set[str] = set()
    for path, sort in locations(kind):
        takes, refuses = URIS[sort]
        said = f"{path.rpartition('.')[2]} {URI_RULES[sort][1].message}"
        # One field of each sort tries all of them: the expressions differ in nothing but the name.
        for uri in refuses if sort not in seen else refuses[:1]:
            assert said in messages(dry(apiserver, namespace, located(kind, path, uri))[1]), (path, uri)
        for uri in takes if sort not in seen else takes[:1]:
            code, answer = dry(apiserver, namespace, located(kind, path, uri))
            # Another rule may refuse the object, such as two models at once.
            assert code == 201 or said not in messages(answer), (path, uri)
        seen.add(sort)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "fits"), [("a" * 40, True), ("a" * 41, False), ("a.b", False)])
def test_names_have_at_most_forty_characters(
    apiserver: ApiServer, namespace: str, kind: str, name: str, fits: bool
) -> None:
    code, answer = dry(apiserver, namespace, minimal(kind, name))
    assert (code == 201) is fits, answer
    assert fits or messages(answer) == [NAME_RULE.message]


COUNT_FIELDS = (
    ("Corpus", "maxDocumentBytes"),
    ("SynthesisJob", "maxDocuments"),
    ("TrainingJob", "tokens"),
    ("TrainingJob", "mixture[].maxTokens"),
    ("TrainingJob", "validation.tokens"),
    ("TrainingJob", "validation.source.maxTokens"),
    ("InstructionPretraining", "training.tokens"),
    ("InstructionPretraining", "training.mixture[].maxTokens"),
    ("InstructionPretraining", "training.validation.tokens"),
    ("InstructionPretraining", "training.validation.source.maxTokens"),
    ("InstructionPretraining", "arms[].training.mixture[].maxTokens"),
    ("InstructionPretraining", "corpus.maxDocumentBytes"),
    ("InstructionPretraining", "synthesis.synthesizer.tune.tokens"),
    ("InstructionPretraining", "synthesis.synthesizer.tune.mixture[].maxTokens"),
)


def test_every_count_is_tried() -> None:
    found = {
        (kind, path)
        for kind in KINDS
        for path, node in nodes(crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        if node.get("x-kubernetes-int-or-string")
    }
    assert found == {(kind, f"spec.{path}") for kind, path in COUNT_FIELDS}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


@pytest.mark.parametrize(("kind", "path"), COUNT_FIELDS)
def test_a_count_is_a_whole_number_above_zero(apiserver: ApiServer, namespace: str, kind: str, path: str) -> None:
    for value, fits in COUNTS:
        obj = located(kind, path, value)
        if "tune" in path:
            obj["spec"]["synthesis"]["synthesizer"].pop("model")
            obj["spec"]["corpus"]["split"] = {"tune": 0.2, "train": 0.7, "heldOut": 0.1}
        if "tune.mixture" in path:
            tune = obj["spec"]["synthesis"]["synthesizer"]["tune"]
            tune["tokens"] = 1000
            tune["mixture"][0].update({"uri": "/x", "format": "tasks"})
        elif kind == "InstructionPretraining" and "mixture" in path:
            training = obj["spec"]["arms"][0]["training"] if "arms" in path else obj["spec"]["training"]
            training["mixture"][0]["source"] = "raw"
        if "validation" in path:
            training = obj["spec"] if kind == "TrainingJob" else obj["spec"]["training"]
            training["validation"].setdefault("source", {}).update({"uri": "/x", "format": "text"})
        code, answer = dry(apiserver, namespace, obj)
        assert (code == 201) is fits, (value, answer)
        if not fits:
            assert any("must be a whole number above 0" in said for said in messages(answer)), value


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("Corpus", {"cleanupPolicy": "Delete"}, 'supported values: "Retain"'),
        ("EvaluationJob", {"tasks": ["mmlu"]}, 'supported values: "bits-per-byte"'),
        ("InstructionPretraining", {"evaluation": {"tasks": ["mmlu"]}}, 'supported values: "bits-per-byte"'),
        ("SynthesisJob", {"strategy": "No such"}, "spec.strategy in body should match"),
        ("InstructionPretraining", {"synthesis__strategy": ""}, "spec.synthesis.strategy in body should match"),
        ("Corpus", {"podTemplate": {"resources": {"limits": {"memory": "8GB"}}}}, "memory in body should match"),
    ],
)
def test_what_the_schema_alone_refuses(
    apiserver: ApiServer, namespace: str, kind: str, changes: dict[str, Any], said: str
) -> None:
    code, answer = dry(apiserver, namespace, minimal(kind, **changes))
    assert code == 422, answer
    assert said in answer["message"]


def test_a_strategy_of_an_image_is_let_through(apiserver: ApiServer, namespace: str) -> None:
    code, answer = dry(apiserver, namespace, minimal("SynthesisJob", strategy="my-own.strategy_2"))
    assert code == 201, answer


TYPOS = [
    ("Corpus", "textFeild", "text"),
    ("SynthesisJob", "sampling__maxTokns", 64),
    ("TrainingJob", "optimizer__learningrate", 1e-4),
    ("EvaluationJob", "gate", {"metric": "bits-per-byte", "delta": 1}),
    ("InstructionPretraining", "synthesis__engine__resource", {}),
    ("Corpus", "podTemplate", {"hostNetwork": True}),
    ("Corpus", "podTemplate", {"resources": {"limits": {"nvidia.com/gpu": "1"}}}),
    ("Corpus", "podTemplate", {"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
]


@pytest.mark.parametrize(("kind", "field", "value"), TYPOS)
def test_an_unknown_field_is_refused(apiserver: ApiServer, namespace: str, kind: str, field: str, value: Any) -> None:
    code, answer = dry(apiserver, namespace, minimal(kind, **{field: value}))
    assert code == 400
    assert "unknown field" in answer["message"]


def _other(value: Any, schema: dict[str, Any]) -> Any:
    """Another value of a field, that the schema takes."""
    if schema.get("x-kubernetes-int-or-string"):
        return 2_000_000 if value != 2_000_000 else 3_000_000
    if "enum" in schema:
        return next(v for v in schema["enum"] if v != value)
    match schema["type"]:
        case "boolean":
            return not value
        case "integer":
            return (value or schema.get("minimum", 0)) + 1
        case "number":
            return value / 2 if value else 0.5
        case "string":
            return f"{value or 'other'}-2"
    raise AssertionError(f"name another value of {schema}")


# Fields whose other value a rule, a pattern or a structure decides; the rest are changed by their type.
OTHER: dict[str, Any] = {
    "storage": {"uri": "/elsewhere"},
    "secretRef": {"name": "s"},
    "endpoint": "https://s3.example.com",
    "split": {"tune": 0.2},
    "prepared": {"uri": "/elsewhere"},
    "input": {"uri": "/elsewhere"},
    "corpus": {"uri": "/elsewhere"},
    "sampling": {"topP": 0.5},
    "filters": {"requireGroundedAnswers": True},
    "engine": {"args": {"max_model_len": 1024}},
    "kernels": {"attention": "mask"},
    "synthesizer": {"model": "c/d"},
    "strategy": None,
    "resources": {"memory": "8Gi"},
    "models": [{"name": "instruct", "uri": "/elsewhere"}],
    "baseline": "instruct",
    "tasks": ["bits-per-byte"],
    "init": {"from": "c/d"},
    "tokenizer": {"from": "c/d"},
    "mixture": [{"uri": "/elsewhere", "format": "text"}],
    "optimizer": {"learningRate": 0.1},
    "schedule": {"name": "wsd"},
    "deepspeed": {"zeroStage": 3},
    "checkpoint": {"keep": 5},
    "sequenceLength": 1024,
    "globalBatchRows": 64,
    "nodes": 2,
    "gpusPerNode": 4,
    "processesPerNode": 2,
    "evaluation": {"shots": 3},
    "arms": [{"name": "instruct"}],
    "seeds": [1, 2],
}
FROZEN = [
    (kind, rule.message.split(" ")[0].removeprefix("spec."), rule.message)
    for kind in KINDS
    for rule in KINDS[kind].rules
    if "once the object has started" in rule.message
]


def change(kind: str, field: str) -> dict[str, Any]:
    """A merge patch that gives a field of the smallest object another value that is valid before the start."""
    spec = parse_resource(minimal(kind)).to_wire()["spec"]
    schema = crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    *parents, last = field.split(".")
    for part in parents:
        spec, schema = spec.get(part, {}), schema["properties"][part]
    schema = schema["properties"][last]
    if last == "strategy":  # mined goes without a model, and with its engine
        patch: dict[str, Any] = {"strategy": "mined", "synthesizer": None, "engine": {"name": "mined"}}
    elif last == "epochs":  # in place of tokens
        patch = {"epochs": 2, "tokens": None}
    elif last == "validation":
        patch = {"validation": {"source": {"uri": "/x", "format": "text"}}}
    elif last == "gate":  # it needs a baseline
        patch = {"gate": {"metric": "bits-per-byte"}, "baseline": "instruct"}
    elif last == "split" and schema["type"] == "object":
        patch = {"split": {"tune": 0.1, "train": 0.8, "heldOut": 0.1}}
    elif last == "filters" and "minWords" in schema["properties"]:  # those of documents
        patch = {"filters": {"minWords": 3}}
    elif last in OTHER and last != "split" and (kind, last) != ("Corpus", "tokenizer"):
        patch = {last: OTHER[last]}
    else:
        patch = {last: _other(spec.get(last), schema)}
    for part in reversed(parents):
        patch = {part: patch}
    return patch


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_output_was_made_from_is_frozen_once_the_object_has_started(
    apiserver: ApiServer, namespace: str, kind: str
) -> None:
    create(apiserver, namespace, minimal(kind, "new"))
    create(apiserver, namespace, minimal(kind, "started"), STARTED)
    create(apiserver, namespace, minimal(kind, "suspended", suspend=True), SUSPENDED)
    # A pipeline takes no epochs, before it has started either.
    fields = [(field, message) for k, field, message in FROZEN if k == kind and field != "training.epochs"]
    assert len(fields) > 8
    for field, message in fields:
        patch = change(kind, field)
        assert edit(apiserver, namespace, kind, patch, "new") is None, field
        for name in ("started", "suspended"):
            assert message in (edit(apiserver, namespace, kind, patch, name) or []), (name, field)


MUTABLE: dict[str, list[dict[str, Any]]] = {
    "SynthesisJob": [{"parallelism": 8}, {"completionPolicy": {"minSucceededPercent": 50}}],
    "TrainingJob": [{"prepareParallelism": 4}],
    "InstructionPretraining": [
        {"synthesis": {"parallelism": 8}},
        {"synthesis": {"completionPolicy": {"minSucceededPercent": 50}}},
        {"training": {"prepareParallelism": 4}},
    ],
}
POLICY = [
    {"suspend": True},
    {"activeDeadlineSeconds": 60},
    {"ttlSecondsAfterFinished": 60},
    {"backoffLimit": 9},
    {"cleanupPolicy": "Retain"},
    {"podTemplate": {"image": "example.com/worker:2"}},
]


@pytest.mark.parametrize("kind", KINDS)
def test_how_the_work_is_run_may_change_at_any_time(apiserver: ApiServer, namespace: str, kind: str) -> None:
    create(apiserver, namespace, minimal(kind), {**STARTED, "stages": [STAGE]})
    for patch in [*POLICY, *MUTABLE.get(kind, [])]:
        assert edit(apiserver, namespace, kind, patch) is None, patch


@pytest.mark.parametrize("kind", KINDS)
def test_the_queue_may_change_before_the_start_and_while_suspended(
    apiserver: ApiServer, namespace: str, kind: str
) -> None:
    said = "spec.queueName can change only before the object starts or while spec.suspend is true; suspend it first"
    assert said in [rule.message for rule in KINDS[kind].rules]
    create(apiserver, namespace, minimal(kind, "new"))
    create(apiserver, namespace, minimal(kind, "started", queueName="a"), STARTED)
    create(apiserver, namespace, minimal(kind, "suspended", queueName="a", suspend=True), SUSPENDED)
    assert edit(apiserver, namespace, kind, {"queueName": "b"}, "new") is None
    assert edit(apiserver, namespace, kind, {"queueName": "b"}, "started") == [said]
    assert edit(apiserver, namespace, kind, {"queueName": None}, "started") == [said]
    assert edit(apiserver, namespace, kind, {"queueName": "b"}, "suspended") is None


@pytest.mark.parametrize("kind", KINDS)
def test_another_controller_takes_an_object_for_good(apiserver: ApiServer, namespace: str, kind: str) -> None:
    said = KINDS[kind].rules[0].message
    assert said.startswith("spec.managedBy cannot change")
    create(apiserver, namespace, minimal(kind, "ours"))
    create(apiserver, namespace, minimal(kind, "theirs", managedBy="kueue.x-k8s.io/multikueue"))
    assert edit(apiserver, namespace, kind, {"managedBy": "kueue.x-k8s.io/multikueue"}, "ours") == [said]
    assert edit(apiserver, namespace, kind, {"managedBy": None}, "theirs") == [said]
    assert edit(apiserver, namespace, kind, {"suspend": True}, "theirs") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_is_a_subresource(apiserver: ApiServer, namespace: str, kind: str) -> None:
    """Who writes the spec cannot write the status, and a write of the status moves no generation."""
    obj = {**minimal(kind), "status": {"phase": "Complete"}}
    code, answer = apiserver.request("POST", path(namespace, kind), obj)
    assert code == 201
    assert "status" not in answer
    before = answer["metadata"]["generation"]
    condition = {
        "type": "Running", "status": "True", "reason": "StageRunning", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
    }  # fmt: skip
    where = path(namespace, kind, "x", "status") + "?fieldValidation=Strict"
    body = {"status": {**STARTED, "conditions": [condition], "stages": [STAGE]}}
    code, answer = apiserver.request("PATCH", where, body, content_type="application/merge-patch+json")
    assert code == 200, answer
    assert answer["metadata"]["generation"] == before
    assert answer["status"]["phase"] == "Running"
    # What pydantic makes of it is what the server keeps.
    kept = copy.deepcopy(answer["status"])
    assert parse_resource({**minimal(kind), "status": kept}).to_wire()["status"] == kept


def test_scale_shows_and_changes_the_workers(apiserver: ApiServer, namespace: str) -> None:
    status = {**STARTED, "workers": 2, "selector": "instructpt.dev/name=x"}
    create(apiserver, namespace, minimal("SynthesisJob", parallelism=3), status)
    where = path(namespace, "SynthesisJob", "x", "scale")
    code, scale = apiserver.request("GET", where)
    assert code == 200
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "instructpt.dev/name=x"}
    code, answer = apiserver.request(
        "PATCH", where, {"spec": {"replicas": 8}}, content_type="application/merge-patch+json"
    )
    assert code == 200, answer
    assert apiserver.request("GET", path(namespace, "SynthesisJob", "x"))[1]["spec"]["parallelism"] == 8


def test_the_smallest_objects_are_of_every_kind() -> None:
    assert set(MINIMAL) == set(KINDS)
