from __future__ import annotations

from typing import Any

import pytest

from instructpt.errors import ConfigError
from instructpt.local.preflight import preflight
from instructpt.local.spec_file import parse_resource
from tests.unit.plan.test_pipeline import quickstart

WRONG = [
    ({"strategy": "magic"}, {}, "spec.synthesis.strategy='magic'"),
    ({"templates": "magic"}, {}, "spec.synthesis.templates='magic'"),
    ({"synthesizer": {"model": "a/b", "profile": "magic"}}, {}, "spec.synthesis.synthesizer.profile='magic'"),
    ({"synthesizer": {"model": "./none"}}, {}, r"synthesizer.model='./none': the model folder does not exist"),
    ({"filters": {"plugins": ["magic"]}}, {}, r"spec.synthesis.filters.plugins\[0\]='magic'"),
    (
        {"filters": {"decontaminate": {"sets": [{"uri": "/none/at/all.jsonl"}]}}},
        {},
        r"spec.synthesis.filters.decontaminate.sets\[0\].uri='/none/at/all.jsonl'",
    ),
    ({}, {"nodes": 4, "globalBatchRows": 8}, "spec.training.nodes=4: needs a cluster"),
    ({}, {"init": {"from": "/none/at/all"}}, "spec.training.init.from='/none/at/all'"),
]


@pytest.mark.parametrize(("synthesis", "training", "said"), WRONG, ids=[w[2] for w in WRONG])
def test_what_a_worker_would_refuse_is_refused_before_anything_runs(
    synthesis: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    wire = quickstart().to_wire()
    wire["spec"]["synthesis"] |= synthesis
    wire["spec"]["training"] |= training
    with pytest.raises(ConfigError, match=said):
        preflight(parse_resource(wire))


def test_evaluation_sets_of_a_corpus_must_be_there_and_those_in_a_bucket_are_not_looked_for() -> None:
    wire = quickstart().to_wire()
    wire["spec"]["corpus"]["filters"] = {"decontaminate": {"sets": [{"uri": "s3://lab/eval"}, {"uri": "/none"}]}}
    with pytest.raises(ConfigError, match=r"spec.corpus.filters.decontaminate.sets\[1\].uri='/none'"):
        preflight(parse_resource(wire))
    wire["spec"]["corpus"]["filters"]["decontaminate"]["sets"].pop()
    preflight(parse_resource(wire))


def test_the_quickstart_passes() -> None:
    preflight(quickstart())
