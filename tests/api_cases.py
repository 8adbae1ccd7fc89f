"""Smallest objects of every kind, and one accepting and one refusing case for every rule of the API.

The unit tests run the cases through pydantic, the tests with an API server through CEL: the same cases and messages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from instructpt.api.base import ApiModel, Rule
from instructpt.api.uris import URI_MARK
from instructpt.api.v1alpha1 import KINDS

MINIMAL: dict[str, dict[str, Any]] = {
    "Corpus": {"uri": "/data/*.jsonl", "storage": {"uri": "/out/corpus"}},
    "SynthesisJob": {
        "input": {"uri": "/out/corpus"},
        "storage": {"uri": "/out/pairs"},
        "synthesizer": {"model": "a/b"},
    },
    "TrainingJob": {
        "storage": {"uri": "/out/model"},
        "init": {"from": "a/b"},
        "mixture": [{"uri": "/out/pairs", "format": "augmented"}],
        "tokens": 1_000_000,
    },
    "EvaluationJob": {
        "storage": {"uri": "/out/scores"},
        "corpus": {"uri": "/out/corpus"},
        "models": [{"name": "instruct", "uri": "/out/model"}],
    },
    "InstructionPretraining": {
        "storage": {"uri": "/out"},
        "corpus": {"uri": "/data/*.jsonl"},
        "synthesis": {"synthesizer": {"model": "a/b"}},
        "training": {"init": {"from": "a/b"}, "tokens": 1_000_000},
    },
}


def minimal(kind: str, name: str = "x", **changes: Any) -> dict[str, Any]:
    """The smallest object of a kind with fields of its spec changed; ``a__b`` is spec.a.b, ``...`` removes a field."""
    spec = copy.deepcopy(MINIMAL[kind])
    for path, value in changes.items():
        node = spec
        *parents, last = path.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        if value is ...:
            node.pop(last, None)
        else:
            node[last] = value
    return {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@dataclass(frozen=True, slots=True)
class Case:
    """One rule: the model that carries it, a part of its message, and what it takes and refuses.

    ``also`` names messages of other rules that the refused object breaks too.
    """

    model: str
    message: str
    kind: str
    accepts: dict[str, Any]
    refuses: dict[str, Any]
    also: tuple[str, ...] = field(default=())


REF = {"kind": "Corpus", "name": "c"}
_TINY = {"preset": "tiny"}
_TASKS = [{"uri": "/tasks", "format": "tasks"}]
_POD = "podTemplate"

GATE = {"metric": "bits-per-byte"}
TRAINED = {"kind": "TrainingJob", "name": "t"}

# A secret key often holds a slash, so what stands after it looks like a path.
SECRETS = (
    "s3://key:secret@lab/x",
    "s3://AKIAEXAMPLE:wJalr/secretUtn@lab/x",
    "S3://key:secret@lab",
    "s3://secret@lab/x",
    "s3:key:secret@lab/x",
    "key:se/secret@lab/x",
    "HTTPS://me:secret@server/x",
    "https://me:12/secret@server",
    "gs://key:se/secret@lab",
    " s3://key:secret@lab/x",
)
"""Locations that hold ``secret``, each of which is refused in every field, and never repeated."""

URIS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "place": (
        ("/a@b", "a/b", "owner/name@main", "s3://lab", "s3://lab/x@y/a:b", "S3://lab/x", "file:///x", "s3://lab/a?b"),
        ("gs://lab/x", "https://server/x", "s3:/lab/x", "s3://lab/x?versionId=1", "s3://lab?x=1", "builtin://x"),
    ),
    "corpus": (
        ("/data/**/part-?.gz", "s3://lab/x@y/*.jsonl", "s3://lab/[ab]/part-?.gz", "builtin://python-docs"),
        ("gs://lab/x", "https://server/x", "file:/x", "s3://lab/*.jsonl?versionId=1", "s3://lab#x"),
    ),
    "url": (
        ("http://server:9000", "https://s3.example.com/path", "http://[::1]:9000", "https://server/"),
        ("server:9000", "s3://lab", "https://server/x?y=1", "https://server#x", "https://", "https://a b"),
    ),
}
"""What each sort of location takes and refuses, by its mark."""


def locations(kind: str) -> Iterator[tuple[str, str]]:
    """Path and sort of every field of a spec that says where something is: ``("models[].uri", "place")``."""
    schema = KINDS[kind].model_fields["spec"].annotation.model_json_schema(by_alias=True)  # type: ignore[union-attr]
    return _marked(schema, schema.get("$defs", {}), "")


def _marked(node: dict[str, Any], defs: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    if "$ref" in node:
        yield from _marked(defs[node["$ref"].rsplit("/", 1)[1]], defs, path)
    for option in node.get("anyOf", ()):
        yield from _marked(option, defs, path)
    if URI_MARK in node:
        yield path, node[URI_MARK]
    if "items" in node:
        yield from _marked(node["items"], defs, f"{path}[]")
    for name, child in node.get("properties", {}).items():
        yield from _marked(child, defs, f"{path}.{name}".lstrip("."))


# Fields without which a section is refused for another reason.
_NEEDED: dict[str, dict[str, Any]] = {
    "arms": {"name": "a"},
    "judge": {"servedModel": "m"},
    "models": {"name": "instruct"},
    "prepared": {"uri": "/x"},
    "sets": {"uri": "/x"},
    "tune": {"init": _TINY, "tokens": "1M"},
}


def located(kind: str, path: str, value: str) -> dict[str, Any]:
    """The smallest object with ``value`` at the path of a location."""
    obj = minimal(kind)
    node = obj["spec"]
    *parents, last = path.split(".")
    for part in parents:
        name = part.removesuffix("[]")
        node = node.setdefault(name, [{}])[0] if part.endswith("[]") else node.setdefault(name, {})
        for needed, given in _NEEDED.get(name, {}).items():
            node.setdefault(needed, copy.deepcopy(given))
    node[last] = value
    return obj


COUNTS: tuple[tuple[Any, bool], ...] = (
    *((value, True) for value in (1, 1_000_000, "1", "8B", "1.5M", "200k", "0.07M", "0.5k", "1.0", "1.50000k", "2T")),
    *((value, False) for value in (0, -5, "0", "0k", "0.0", "-1", "1.5", "1.2345k", "", "8Q", "8 B", " 8B", "B")),
)
"""What a count may be, and what not."""


CASES = (
    Case(
        "SynthesisJobSpec", "input.ref must name", "SynthesisJob", {"input": {"ref": REF}}, {"input": {"ref": TRAINED}}
    ),
    Case(
        "Synthesizer", "ref must name", "SynthesisJob", {"synthesizer": {"ref": TRAINED}}, {"synthesizer": {"ref": REF}}
    ),
    Case(
        "CorpusFilters",
        "minWords must not be above",
        "Corpus",
        {"filters": {"minWords": 9, "maxWords": 9}},
        {"filters": {"minWords": 9, "maxWords": 8}},
    ),
    Case(
        "Filters",
        "minQuestionCharacters must not be above",
        "SynthesisJob",
        {"filters__minQuestionCharacters": 9, "filters__maxQuestionCharacters": 9},
        {"filters__minQuestionCharacters": 9, "filters__maxQuestionCharacters": 8},
    ),
    Case(
        "Filters",
        "minAnswerCharacters must not be above",
        "SynthesisJob",
        {"filters__minAnswerCharacters": 9, "filters__maxAnswerCharacters": 9},
        {"filters__minAnswerCharacters": 9, "filters__maxAnswerCharacters": 8},
    ),
    Case(
        "SynthesisSettings",
        "minLikelihoodGain needs a model",
        "SynthesisJob",
        {"filters__minLikelihoodGain": 0.5},
        {"filters__minLikelihoodGain": 0.5, "strategy": "mined", "engine": {"name": "mined"}, "synthesizer": ...},
    ),
    Case("ModelInit", "ref must name", "TrainingJob", {"init": {"ref": TRAINED}}, {"init": {"ref": REF}}),
    Case(
        "MixtureSource",
        "ref must name",
        "TrainingJob",
        {"mixture": [{"ref": {"kind": "SynthesisJob", "name": "s"}}]},
        {"mixture": [{"ref": TRAINED}]},
    ),
    Case(
        "MixtureSource",
        "with uri needs format",
        "TrainingJob",
        {"mixture": [{"uri": "/x", "format": "text"}]},
        {"mixture": [{"uri": "/x"}]},
    ),
    Case(
        "MixtureSource",
        "formatting of a mixture entry is for",
        "TrainingJob",
        {"mixture": [{"uri": "/x", "format": "instructions", "formatting": {"name": "chat"}}]},
        {"mixture": [{"uri": "/x", "format": "tasks", "formatting": {"name": "chat"}}]},
    ),
    Case(
        "Formatting",
        "exactly one of name and template",
        "TrainingJob",
        {"mixture": [{"uri": "/x", "format": "instructions", "formatting": {"name": "newline"}}]},
        {"mixture": [{"uri": "/x", "format": "instructions", "formatting": {"contextField": "input"}}]},
    ),
    Case(
        "Formatting",
        "formatting.template must hold",
        "TrainingJob",
        {
            "mixture": [
                {
                    "uri": "/x",
                    "format": "instructions",
                    "formatting": {"template": "{context}{question}{{}} {answer}."},
                }
            ]
        },
        {"mixture": [{"uri": "/x", "format": "instructions", "formatting": {"template": "{instruction} {answer}"}}]},
    ),
    Case(
        "TuneSpec",
        "not both",
        "InstructionPretraining",
        {"synthesis": {"synthesizer": {"tune": {"init": _TINY, "tokens": 1, "mixture": _TASKS}}}},
        {"synthesis": {"synthesizer": {"tune": {"init": _TINY, "tokens": 1, "mixture": _TASKS, "tasks": "/x"}}}},
    ),
    Case(
        "TuneSpec",
        "entries of tune.mixture",
        "InstructionPretraining",
        {"synthesis": {"synthesizer": {"tune": {"init": _TINY, "tokens": 1, "mixture": _TASKS}}}},
        {
            "synthesis": {
                "synthesizer": {
                    "tune": {"init": _TINY, "tokens": 1, "mixture": [{"uri": "/x", "format": "instructions"}]}
                }
            }
        },
    ),
    Case(
        "TokenizerTrain",
        "corpus.ref must name",
        "TrainingJob",
        {"tokenizer": {"train": {"corpus": {"ref": REF}}}},
        {"tokenizer": {"train": {"corpus": {"ref": TRAINED}}}},
    ),
    Case(
        "Candidate",
        "ref must name",
        "EvaluationJob",
        {"models": [{"name": "instruct", "ref": TRAINED}]},
        {"models": [{"name": "instruct", "ref": REF}]},
    ),
    Case(
        "EvaluationJobSpec",
        "corpus.ref must name",
        "EvaluationJob",
        {"corpus": {"ref": REF}},
        {"corpus": {"ref": TRAINED}},
    ),
    *(
        Case(
            f"{kind}Spec",
            f"{name}.uri must have at most",
            kind,
            {f"{name}__uri": "s3://lab/".ljust(limit, "x")},
            {f"{name}__uri": "s3://lab/".ljust(limit + 1, "x")},
        )
        for kind, name, limit in (
            ("Corpus", "storage", 960),
            ("SynthesisJob", "storage", 960),
            ("TrainingJob", "storage", 960),
            ("TrainingJob", "prepared", 960),
            ("EvaluationJob", "storage", 960),
            ("InstructionPretraining", "storage", 896),
        )
    ),
    Case(
        "EvaluationSettings",
        "tasks must differ",
        "EvaluationJob",
        {"tasks": ["bits-per-byte", "qa-exact-match"]},
        {"tasks": ["bits-per-byte", "bits-per-byte"]},
    ),
    Case(
        "EvaluationSettings",
        "gate.metric must be one of",
        "EvaluationJob",
        {"baseline": "instruct", "gate": GATE},
        {"baseline": "instruct", "gate": GATE, "tasks": ["qa-exact-match"]},
    ),
    Case(
        "EvaluationJobSpec", "needs baseline", "EvaluationJob", {"baseline": "instruct", "gate": GATE}, {"gate": GATE}
    ),
    Case(
        "InstructionPretrainingSpec",
        "arms x seeds",
        "InstructionPretraining",
        {"arms": [{"name": f"a{n}"} for n in range(16)], "seeds": [1, 2, 3, 4]},
        {"arms": [{"name": f"a{n}"} for n in range(13)], "seeds": [1, 2, 3, 4, 5]},
    ),
    Case(
        "EnvVar",
        "must not set",
        "Corpus",
        {_POD: {"env": [{"name": "HF_HOME", "value": "/cache"}, {"name": "INSTRUCTPT_LOG_LEVEL", "value": "DEBUG"}]}},
        {_POD: {"env": [{"name": "INSTRUCTPT_SCRATCH", "value": "/cache"}]}},
    ),
    Case(
        "PodResources",
        "no request may be above its limit",
        "Corpus",
        {
            _POD: {
                "resources": {"requests": {"memory": "1024Mi", "cpu": "500m"}, "limits": {"memory": "1Gi", "cpu": "1"}}
            }
        },
        {_POD: {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}},
    ),
    Case("Input", "exactly one of uri and ref", "SynthesisJob", {"input": {"ref": REF}}, {"input": {}}),
    Case(
        "Split",
        "must add up to 1",
        "Corpus",
        {"split": {"tune": 0.1, "train": 0.8, "heldOut": 0.1}},
        {"split": {"train": 0.8, "heldOut": 0.1}},
    ),
    Case(
        "Engine",
        "must not hold secrets",
        "SynthesisJob",
        {"engine": {"args": {"max_model_len": 4096}}},
        {"engine": {"args": {"api_key": "x"}}},
    ),
    Case(
        "Engine",
        "needs engine.endpoint",
        "SynthesisJob",
        {"engine": {"name": "openai", "endpoint": "http://server/v1"}},
        {"engine": {"name": "openai"}},
    ),
    Case(
        "Sampling",
        "maxTokens must be below",
        "SynthesisJob",
        {"sampling": {"maxTokens": 64, "contextWindow": 128}},
        {"sampling": {"maxTokens": 128, "contextWindow": 128}},
    ),
    Case(
        "SynthesisJobSpec",
        "go together",
        "SynthesisJob",
        {"strategy": "mined", "engine": {"name": "mined"}, "synthesizer": ...},
        {"strategy": "mined", "synthesizer": ...},
    ),
    Case(
        "SynthesisJobSpec",
        "exactly one of synthesizer.model",
        "SynthesisJob",
        {"synthesizer": {"ref": {"kind": "TrainingJob", "name": "t"}}},
        {"synthesizer": ...},
    ),
    Case(
        "SynthesisJobSpec",
        "neither for strategies of rules",
        "SynthesisJob",
        {"strategy": "ours", "engine": {"name": "mined"}, "synthesizer": ...},
        {"strategy": "ours", "engine": {"name": "mined"}},
    ),
    Case(
        "ModelInit",
        "init needs exactly one",
        "TrainingJob",
        {"init": {"preset": "tiny", "config": {"hidden_size": 64}}},
        {"init": {"from": "a/b", "preset": "tiny"}},
    ),
    Case(
        "ModelInit",
        "config cannot be laid over",
        "TrainingJob",
        {"init": {"preset": "llama3-8b"}},
        {"init": {"preset": "llama3-8b", "config": {"hidden_size": 64}}},
    ),
    Case(
        "MixtureSource",
        "weight or repeats",
        "TrainingJob",
        {"mixture": [{"ref": REF, "repeats": 4, "maxTokens": "8B"}, {"ref": REF, "name": "b", "weight": 2}]},
        {"mixture": [{"ref": REF, "repeats": 4, "weight": 2}]},
    ),
    Case(
        "TokenizerSpec",
        "tokenizer needs exactly one",
        "TrainingJob",
        {"tokenizer": {"train": {}}},
        {"tokenizer": {"from": "a/b", "train": {}}},
    ),
    Case(
        "MixtureSource",
        "a mixture entry needs exactly one",
        "TrainingJob",
        {"mixture": [{"ref": REF}]},
        {"mixture": [{"ref": REF, "uri": "/x"}]},
    ),
    Case("TrainingSettings", "multiple of 8", "TrainingJob", {"sequenceLength": 1000}, {"sequenceLength": 1001}),
    Case(
        "TrainingSettings",
        "multiple of the ranks",
        "TrainingJob",
        {"nodes": 2, "gpusPerNode": 3, "globalBatchRows": 36},
        {"nodes": 2, "gpusPerNode": 3, "globalBatchRows": 32},
    ),
    Case(
        "TrainingSettings",
        "exactly one of tokens and epochs",
        "TrainingJob",
        {"tokens": ..., "epochs": 3},
        {"tokens": 1000, "epochs": 3},
    ),
    Case(
        "TrainingSettings",
        "weights hold for tokens",
        "TrainingJob",
        {"tokens": ..., "epochs": 3},
        {"tokens": ..., "epochs": 3, "mixture": [{"uri": "/x", "format": "text", "weight": 2}]},
    ),
    Case(
        "TrainingSettings",
        "do not go together; use zeroStage 2",
        "TrainingJob",
        {"kernels": {"compile": True}, "deepspeed": {"zeroStage": 2}},
        {"kernels": {"compile": True}, "deepspeed": {"zeroStage": 3}},
    ),
    Case(
        "TrainingSettings",
        "must name a tokenizer",
        "TrainingJob",
        {"init": {"preset": "500m"}, "tokenizer": {"from": "a/b"}},
        {"init": {"preset": "500m"}},
    ),
    Case(
        "TrainingJobSpec",
        "inside an InstructionPretraining only",
        "TrainingJob",
        {"mixture": [{"ref": REF}]},
        {"mixture": ...},
    ),
    Case(
        "EvaluationJobSpec",
        "baseline must be the name",
        "EvaluationJob",
        {"baseline": "instruct"},
        {"baseline": "vanilla"},
    ),
    Case(
        "PipelineSynthesis",
        "go together",
        "InstructionPretraining",
        {"synthesis": {"strategy": "mined", "engine": {"name": "mined"}}},
        {"synthesis": {"strategy": "mined"}},
    ),
    Case(
        "PipelineSynthesis",
        "exactly one of model, ref and tune",
        "InstructionPretraining",
        {"synthesis": {"synthesizer": {"ref": {"kind": "TrainingJob", "name": "t"}}}},
        {"synthesis": {}},
    ),
    Case(
        "PipelineSynthesis",
        "none of them for strategies of rules",
        "InstructionPretraining",
        {"synthesis": {"strategy": "ours", "engine": {"name": "mined"}}},
        {"synthesis": {"strategy": "ours", "engine": {"name": "mined"}, "synthesizer": {"model": "a/b"}}},
    ),
    Case(
        "Arm",
        "rows of the report",
        "InstructionPretraining",
        {"arms": [{"name": "majority-2"}]},
        {"arms": [{"name": "majority"}]},
    ),
    Case(
        "InstructionPretrainingSpec",
        "corpus.split.tune must be above 0",
        "InstructionPretraining",
        {
            "synthesis": {"synthesizer": {"tune": {"init": _TINY, "tokens": "1M"}}},
            "corpus__split": {"tune": 0.2, "train": 0.7, "heldOut": 0.1},
        },
        {"synthesis": {"synthesizer": {"tune": {"init": _TINY, "tokens": "1M"}}}},
    ),
    Case(
        "InstructionPretrainingSpec",
        "corpus.split.heldOut must be above 0",
        "InstructionPretraining",
        {"corpus__split": {"train": 0.5, "heldOut": 0.5}},
        {"corpus__split": {"train": 1.0, "heldOut": 0.0}},
    ),
    Case(
        "InstructionPretrainingSpec",
        "training.tokens must be set",
        "InstructionPretraining",
        {"training__tokens": 1000},
        {"training__tokens": ..., "training__epochs": 2},
    ),
    Case(
        "InstructionPretrainingSpec",
        "training.validation.source must be raw",
        "InstructionPretraining",
        {"training__validation": {"source": {"source": "raw"}}},
        {"training__validation": {"source": {"source": "tuning"}}},
    ),
    Case(
        "InstructionPretrainingSpec",
        "names of arms must differ",
        "InstructionPretraining",
        {"arms": [{"name": "a"}, {"name": "b"}]},
        {"arms": [{"name": "a"}, {"name": "a"}]},
    ),
    Case(
        "InstructionPretrainingSpec",
        "seeds must differ",
        "InstructionPretraining",
        {"seeds": [1, 2]},
        {"seeds": [1, 1]},
    ),
    Case(
        "EnvVarSource",
        "valueFrom needs exactly one",
        "Corpus",
        {_POD: {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        {_POD: {"env": [{"name": "A", "valueFrom": {}}]}},
    ),
    Case(
        "EnvVar",
        "value or valueFrom, not both",
        "Corpus",
        {_POD: {"env": [{"name": "A", "value": "1"}]}},
        {_POD: {"env": [{"name": "A", "value": "1", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]}},
    ),
    Case(
        "EnvFromSource",
        "envFrom needs exactly one",
        "Corpus",
        {_POD: {"envFrom": [{"secretRef": {"name": "s"}}]}},
        {_POD: {"envFrom": [{"prefix": "A_"}]}},
    ),
    Case(
        "Volume",
        "others, such as hostPath, are not allowed",
        "Corpus",
        {_POD: {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "projected": {"sources": []}}]}},
        {_POD: {"volumes": [{"name": "a"}]}},
    ),
    Case(
        "PodTemplate",
        "labels must not hold",
        "Corpus",
        {_POD: {"labels": {"team": "nlp"}}},
        {_POD: {"labels": {"instructpt.dev/name": "other"}}},
    ),
    Case(
        "PodTemplate",
        "must name one of podTemplate.volumes",
        "Corpus",
        {_POD: {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/a"}]}},
        {_POD: {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "b", "mountPath": "/a"}]}},
    ),
)


def rules() -> Iterator[tuple[type[ApiModel], Rule]]:
    """Every rule that holds inside a spec, once, with the class that declares it."""
    seen: set[type] = set()
    for kind in KINDS.values():
        for model in _models(kind.model_fields["spec"].annotation):
            for cls in model.__mro__:
                if cls not in seen and issubclass(cls, ApiModel):
                    seen.add(cls)
                    yield from ((cls, rule) for rule in cls.__dict__.get("rules", ()))


def rule_of(case: Case) -> Rule:
    """The rule that a case is about."""
    found = [rule for cls, rule in rules() if cls.__name__ == case.model and case.message in rule.message]
    assert len(found) == 1, (case.model, case.message, found)
    return found[0]


def _models(annotation: Any) -> Iterator[type[ApiModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
        for info in annotation.model_fields.values():
            yield from _models(info.annotation)
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from _models(part)
