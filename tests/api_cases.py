"""Smallest objects of every kind, and one accepting and one refusing case for every rule of the API.

The unit tests run the cases through pydantic, the tests with an API server through CEL: the same cases and messages.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from instructpt.api.base import ApiModel, Rule
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
        "mixture": [{"uri": "/out/pairs"}],
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
_POD = "podTemplate"

# Fields that take a URI, one of each sort, with a URI that holds credentials.
SECRET = "s3://key:secret@lab/x"
SECRET_URIS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Corpus", {"uri": SECRET}),
    ("Corpus", {"storage__uri": SECRET}),
    ("Corpus", {"endpoint": "https://me:secret@server"}),
    ("Corpus", {"tokenizer": "https://me:secret@server/x"}),
    ("SynthesisJob", {"input__uri": SECRET}),
    ("SynthesisJob", {"synthesizer__model": SECRET}),
    ("SynthesisJob", {"engine": {"name": "openai", "endpoint": "http://me:secret@server/v1"}}),
    ("TrainingJob", {"init": {"from": SECRET}}),
    ("TrainingJob", {"tokenizer": {"from": SECRET}}),
    ("TrainingJob", {"mixture": [{"uri": SECRET}]}),
    ("TrainingJob", {"prepared": {"uri": SECRET}}),
    ("EvaluationJob", {"models": [{"name": "instruct", "uri": SECRET}]}),
    ("InstructionPretraining", {"corpus__uri": SECRET}),
    ("InstructionPretraining", {"training__mixture": [{"uri": SECRET}]}),
)

CASES = (
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
        "ModelInit",
        "init needs exactly one",
        "TrainingJob",
        {"init": {"preset": "tiny", "config": {"hidden_size": 64}}},
        {"init": {"from": "a/b", "preset": "tiny"}},
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
