from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from api_cases import COUNTS

from instructpt.api.base import parse_count
from instructpt.api.v1alpha1 import KINDS
from instructpt.errors import ConfigError
from instructpt.local.spec_file import load_resource, parse_resource

HEADLINE = """
apiVersion: instructpt.dev/v1alpha1
kind: InstructionPretraining
metadata: {name: medicine}
spec:
  storage: {uri: s3://lab/medicine, secretRef: {name: s3}}
  corpus: {uri: "s3://corpora/pubmed/*.jsonl.zst", textField: abstract}
  synthesis:
    synthesizer: {model: instruction-pretrain/instruction-synthesizer, profile: instruction-synthesizer}
    shots: 3
    convert: 1.0
    shards: 512
    parallelism: 16
    engine: {name: vllm, resources: {gpus: 1}}
  training:
    init: {from: meta-llama/Meta-Llama-3-8B}
    mixture:
      - {source: augmented, weight: 1}
      - {uri: s3://corpora/open-orca/, format: instructions, weight: 1}
    tokens: 8B
    sequenceLength: 4096
    deepspeed: {zeroStage: 3}
    nodes: 4
    gpusPerNode: 8
  evaluation: {tasks: [bits-per-byte], gate: {metric: bits-per-byte, minDelta: 1.0}}
  arms: [{name: instruct}, {name: vanilla}]
"""


def headline(**changes: Any) -> dict[str, Any]:
    """The headline object with dotted paths replaced; a value of ``...`` removes the field."""
    data: dict[str, Any] = yaml.safe_load(HEADLINE)
    for path, value in changes.items():
        node = data
        *parents, last = path.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        if value is ...:
            node.pop(last)
        else:
            node[last] = value
    return data


def test_the_headline_object_of_the_design_is_valid() -> None:
    resource = parse_resource(headline())
    assert resource.spec.training.tokens == 8_000_000_000  # type: ignore[union-attr]
    assert [a.name for a in resource.spec.arms] == ["instruct", "vanilla"]  # type: ignore[union-attr]


def test_a_valid_object_survives_the_way_to_yaml_and_back() -> None:
    resource = parse_resource(headline())
    again = parse_resource(yaml.safe_load(yaml.safe_dump(resource.to_wire())))
    assert again == resource


BAD = [
    ("unknown field", {"spec__training__tokns": 5}, "spec.training.tokns: unknown field; did you mean tokens?"),
    ("unknown top field", {"spec__synthesys": {}}, "spec.synthesys: unknown field; did you mean synthesis?"),
    ("wrong type", {"spec__synthesis__shots": "three"}, "spec.synthesis.shots='three'"),
    ("out of range", {"spec__synthesis__convert": 1.5}, "spec.synthesis.convert=1.5"),
    ("missing", {"spec__training__tokens": ...}, "needs exactly one of tokens and epochs"),
    ("bad count", {"spec__training__tokens": "8Q"}, "suffixes k, M, B, T"),
    ("bad name", {"metadata__name": "Upper_Case"}, "metadata.name='Upper_Case'"),
    ("long name", {"metadata__name": "x" * 41}, "metadata.name"),
    ("wrong kind", {"kind": "Pretraining"}, "kind='Pretraining': is not a kind; use one of Corpus"),
    ("wrong version", {"apiVersion": "v1"}, "apiVersion='v1': is not served; use instructpt.dev/v1alpha1"),
    ("split", {"spec__corpus__split": {"tune": 0.5, "train": 0.6}}, "must add up to 1"),
    (
        "no held-out part",
        {"spec__corpus__split": {"train": 1.0, "heldOut": 0.0}},
        "corpus.split.heldOut must be above 0",
    ),
    (
        "tune without a tune part",
        {"spec__synthesis__synthesizer": {"tune": {"init": {"preset": "tiny"}, "tokens": "1M"}}},
        "corpus.split.tune must be above 0",
    ),
    ("mined with a model engine", {"spec__synthesis__strategy": "mined"}, "go together"),
    (
        "two synthesizers",
        {
            "spec__synthesis__synthesizer": {
                "model": "a/b",
                "tune": {"init": {"preset": "tiny"}, "tokens": "1M"},
            }
        },
        "exactly one of model, ref and tune",
    ),
    ("two inits", {"spec__training__init": {"from": "a/b", "preset": "tiny"}}, "exactly one of from, ref and preset"),
    ("preset without tokenizer", {"spec__training__init": {"preset": "500m"}}, "must name a tokenizer"),
    ("batch and ranks", {"spec__training__globalBatchRows": 33}, "multiple of the ranks"),
    ("sequence length", {"spec__training__sequenceLength": 1001}, "multiple of 8"),
    ("sampling", {"spec__synthesis__sampling": {"maxTokens": 5000}}, "maxTokens must be below contextWindow"),
    ("equal arms", {"spec__arms": [{"name": "a"}, {"name": "a"}]}, "names of arms must differ"),
    ("equal seeds", {"spec__seeds": [1, 1]}, "seeds must differ"),
    ("credentials in a URI", {"spec__storage": {"uri": "s3://key:secret@lab/x"}}, "must not hold credentials"),
    ("credentials in another URI", {"spec__corpus__uri": "s3://key:secret@lab/x"}, "spec.corpus.uri: must not hold"),
    (
        "credentials in an endpoint",
        {"spec__synthesis__engine": {"name": "openai", "endpoint": "http://me:secret@server/v1"}},
        "spec.synthesis.engine.endpoint: must not hold",
    ),
    ("a key among the arguments", {"spec__synthesis__engine": {"args": {"api_key": "x"}}}, "must not hold secrets"),
    ("a reserved name", {"spec__arms": [{"name": "untrained"}]}, "rows of the report"),
    ("a seed too large", {"spec__seeds": [2**31]}, "spec.seeds[0]"),
    ("openai without endpoint", {"spec__synthesis__engine": {"name": "openai"}}, "engine openai needs engine.endpoint"),
    ("yaml trap", {"spec__corpus__textField": True}, "put it in quotes"),
    ("arm sets tokens", {"spec__arms": [{"name": "a", "training": {"tokens": 5}}]}, "unknown field"),
]


@pytest.mark.parametrize(("changes", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_wrong_spec_is_refused_naming_field_value_and_fix(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_resource(headline(**changes))
    assert said in str(error.value)
    assert "secret@" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8B", 8 * 10**9), ("1.5M", 1_500_000), ("200k", 200_000), ("7", 7), ("2T", 2 * 10**12), ("0.07M", 70_000)],
)
def test_counts_take_suffixes(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(("value", "fits"), COUNTS)
def test_counts_are_whole_numbers_above_zero(value: Any, fits: bool) -> None:
    obj = headline(spec__training__tokens=value)
    if fits:
        assert parse_resource(obj).spec.training.tokens == parse_count(value)  # type: ignore[union-attr]
    else:
        with pytest.raises(ConfigError, match=f"spec.training.tokens={value!r}: .*(whole number|greater than)"):
            parse_resource(obj)


def test_a_boolean_is_no_count() -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_count(True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "not valid YAML"),
        ("", "holds 0 objects"),
        ("a: 1\n---\nb: 2\n", "holds 2 objects"),
        ("- 1\n", "expected an object"),
    ],
)
def test_files_that_hold_no_object_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_resource(path)


def test_a_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; .*instructpt init DIR"):
        load_resource(tmp_path / "none.yaml")


def test_the_kinds_and_their_short_names_are_frozen() -> None:
    assert {n: k.short_name for n, k in KINDS.items()} == {
        "Corpus": "corp",
        "SynthesisJob": "syn",
        "TrainingJob": "trn",
        "EvaluationJob": "evl",
        "InstructionPretraining": "ipt",
    }
