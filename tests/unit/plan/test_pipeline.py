from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.api.runspec import MAX_RUNSPEC_BYTES, RunSpec, StageResult
from instructpt.api.v1alpha1 import InstructionPretraining
from instructpt.api.v1alpha1.trainingjob import CheckpointSpec
from instructpt.errors import ConfigError
from instructpt.local.spec_file import load_resource, parse_resource
from instructpt.plan import Plan, plan_resource
from instructpt.plan.naming import child_name
from instructpt.plan.pipeline import children

ROOT = Path(__file__).resolve().parents[3]
VERSION = "0.0.0"


def quickstart(**changes: Any) -> InstructionPretraining:
    resource = load_resource(ROOT / "examples" / "quickstart.yaml")
    assert isinstance(resource, InstructionPretraining)
    wire = resource.to_wire()
    wire["spec"] |= changes
    parsed = parse_resource(wire)
    assert isinstance(parsed, InstructionPretraining)
    return parsed


def drive(resource: InstructionPretraining, **kwargs: Any) -> tuple[list[str], Plan]:
    """Finish stage after stage and note the order."""
    results: dict[str, StageResult] = {}
    order = []
    while True:
        plan = plan_resource(resource, results, code_version=VERSION, **kwargs)
        stage = plan.next_stage()
        if stage is None:
            return order, plan
        assert stage.key is not None
        assert stage.output is not None
        order.append(stage.step)
        results[stage.key] = StageResult(uri=stage.output.uri, digest=f"sha256:{len(order):064x}")


def test_children_come_in_the_order_of_the_protocol() -> None:
    assert [c.step for c in children(quickstart())] == [
        "corpus",
        "tuning-tasks",
        "synthesizer",
        "synthesis",
        "train-instruct",
        "train-vanilla",
        "evaluation",
    ]


def test_the_quickstart_runs_each_stage_once_and_the_tokenizer_is_shared() -> None:
    order, plan = drive(quickstart())
    assert plan.is_complete
    assert order == [
        "corpus",
        "tuning-tasks",
        "synthesizer.tokenizer",
        "synthesizer.pack-tasks",
        "synthesizer",
        "synthesis",
        "train-instruct.pack-augmented",
        "train-instruct",
        "train-vanilla.pack-raw",
        "train-vanilla",
        "evaluation",
        "report",
    ]


def test_vanilla_reads_the_same_documents_raw() -> None:
    _, plan = drive(quickstart())
    vanilla = plan.stage("train-vanilla.pack-raw").runspec
    synthesis = plan.stage("synthesis").runspec
    assert vanilla is not None
    assert synthesis is not None
    assert vanilla.pack is not None
    assert synthesis.synthesize is not None
    assert vanilla.pack.source.digest == synthesis.synthesize.corpus.digest
    assert vanilla.pack.source.split == synthesis.synthesize.split == "train"


def test_evaluation_reads_only_the_held_out_part() -> None:
    _, plan = drive(quickstart())
    runspec = plan.stage("evaluation").runspec
    assert runspec is not None
    assert runspec.evaluate is not None
    assert runspec.evaluate.split == "heldOut"


def test_arms_train_on_equal_budgets() -> None:
    _, plan = drive(quickstart())
    tokens = {
        s.arm: s.runspec.train.tokens
        for s in plan.stages
        if s.kind == "train" and s.arm and s.runspec and s.runspec.train
    }
    assert tokens == dict.fromkeys(("instruct", "vanilla"), quickstart().spec.training.tokens)


def test_seeds_multiply_the_arms_and_share_their_token_shards() -> None:
    order, plan = drive(quickstart(seeds=[1, 2, 3]))
    assert [s for s in order if s.startswith("train-") and "." not in s] == [
        f"train-{arm}-s{seed}" for arm in ("instruct", "vanilla") for seed in (1, 2, 3)
    ]
    assert sum(s.kind == "pack" and s.arm == "instruct" for s in plan.stages) == 1


def test_a_changed_training_field_keeps_synthesis() -> None:
    first, second = quickstart(), quickstart()
    training = second.spec.training.model_copy(update={"tokens": 900_000})
    second = second.model_copy(update={"spec": second.spec.model_copy(update={"training": training})})
    _, before = drive(first)
    _, after = drive(second)
    assert before.stage("synthesis").key == after.stage("synthesis").key
    assert before.stage("train-instruct").key != after.stage("train-instruct").key


def test_parallelism_changes_no_key() -> None:
    resource = quickstart()
    synthesis = resource.spec.synthesis.model_copy(update={"parallelism": 7, "lease_seconds": 99})
    other = resource.model_copy(update={"spec": resource.spec.model_copy(update={"synthesis": synthesis})})
    assert drive(resource)[1].stage("synthesis").key == drive(other)[1].stage("synthesis").key


def test_a_sample_ends_with_the_synthesis() -> None:
    order, plan = drive(quickstart(), sample=20)
    assert order[-1] == "synthesis"
    runspec = plan.stage("synthesis").runspec
    assert runspec is not None
    assert runspec.synthesize is not None
    assert runspec.synthesize.max_documents == 20


def test_an_unknown_task_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"spec.evaluation.tasks\[0\]='mmlu'"):
        drive(quickstart(evaluation={"tasks": ["mmlu"]}))


def test_source_tuning_needs_a_tuned_synthesizer() -> None:
    resource = quickstart(
        synthesis={"synthesizer": {"model": "some/model"}, "engine": {"name": "transformers"}},
        training={
            "init": {"preset": "tiny"},
            "tokens": 1000,
            "mixture": [{"source": "augmented"}, {"source": "tuning"}],
        },
    )
    with pytest.raises(ConfigError, match="no tuning set"):
        drive(resource)


TRAINING = {"init": {"preset": "tiny"}, "tokens": 1000}
SYNTHESIS = {"strategy": "mined", "engine": {"name": "mined"}}
REF = {"kind": "TrainingJob", "name": "other"}
REFUSED = [
    (
        {"training": {**TRAINING, "mixture": [{"source": "raw", "split": "heldOut"}]}},
        r"split='heldOut': arms train on the train part alone",
    ),
    (
        {"training": {"init": {"ref": REF}, "tokenizer": {"from": "a/b"}, "tokens": 1000}},
        r"spec.training.init.ref='other': refers to another object",
    ),
    (
        {"synthesis": {"synthesizer": {"ref": REF}, "engine": {"name": "transformers"}}},
        r"spec.synthesis.synthesizer.ref='other'",
    ),
    ({"training": {**TRAINING, "sequenceLength": 4096}}, r"spec.sequenceLength=4096: the model has 2048 positions"),
    (
        {"training": {**TRAINING, "mixture": [{"uri": "a", "format": "text", "name": "x"}] * 2}},
        r"spec.mixture\[1\].name='x': is the name of two sources",
    ),
    ({"evaluation": {"gate": {"metric": "average"}}}, r"spec.evaluation.gate.metric='average'"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_what_could_only_fail_later_is_refused_by_the_plan(changes: dict[str, Any], said: str) -> None:
    base = {"synthesis": SYNTHESIS} if "synthesis" not in changes else {}
    with pytest.raises(ConfigError, match=said):
        plan_resource(quickstart(**base, **changes), {}, code_version=VERSION)


def test_a_tuned_synthesizer_must_hold_the_context_window() -> None:
    resource = quickstart()
    synthesis = resource.to_wire()["spec"]["synthesis"]
    synthesis["sampling"]["contextWindow"] = 8192
    with pytest.raises(ConfigError, match="contextWindow=8192: the synthesizer has 2048 positions"):
        plan_resource(quickstart(synthesis=synthesis), {}, code_version=VERSION)


def test_vanilla_merges_raw_with_what_replaces_augmented() -> None:
    mixture = [{"source": "augmented", "weight": 3}, {"source": "raw", "weight": 1}]
    _, plan = drive(quickstart(synthesis=SYNTHESIS, training={**TRAINING, "mixture": mixture}))
    runspec = plan.stage("train-vanilla").runspec
    assert runspec is not None
    assert runspec.train is not None
    assert [(s.name, s.weight) for s in runspec.train.sources] == [("raw", 4.0)]


def test_a_tokenizer_is_trained_on_the_corpus_that_was_named() -> None:
    tokenizer = {"train": {"vocabSize": 2048, "corpus": {"uri": "my/own/corpus"}}}
    _, plan = drive(quickstart(synthesis=SYNTHESIS, training={**TRAINING, "tokenizer": tokenizer}))
    runspec = plan.stage("train-instruct.tokenizer").runspec
    assert runspec is not None
    assert runspec.tokenizer is not None
    assert runspec.tokenizer.source.uri == "my/own/corpus"


def test_how_often_checkpoints_are_written_changes_no_key() -> None:
    resource = quickstart()
    training = resource.spec.training.model_copy(update={"checkpoint": CheckpointSpec(every_steps=7, keep=5)})
    other = resource.model_copy(update={"spec": resource.spec.model_copy(update={"training": training})})
    assert drive(resource)[1].stage("train-instruct").key == drive(other)[1].stage("train-instruct").key


def test_a_ref_needs_a_cluster() -> None:
    resource = parse_resource(
        {
            "apiVersion": "instructpt.dev/v1alpha1",
            "kind": "SynthesisJob",
            "metadata": {"name": "x"},
            "spec": {
                "storage": {"uri": "out"},
                "input": {"ref": {"kind": "Corpus", "name": "c"}},
                "strategy": "mined",
                "engine": {"name": "mined"},
            },
        }
    )
    with pytest.raises(ConfigError, match=r"spec.input.ref='c': .* set uri"):
        plan_resource(resource, {}, code_version=VERSION)


def test_a_runspec_stays_small_with_fifty_sources() -> None:
    mixture = [{"uri": f"s3://bucket/{'long/' * 20}{i}", "format": "jsonl", "weight": 1} for i in range(50)]
    resource = quickstart(training={"init": {"preset": "tiny"}, "tokens": "1M", "mixture": mixture})
    _, plan = drive(resource)
    sizes = [len(s.runspec.to_json().encode()) for s in plan.stages if s.runspec is not None]
    assert max(sizes) <= MAX_RUNSPEC_BYTES


def test_a_runspec_survives_its_json() -> None:
    _, plan = drive(quickstart())
    for stage in plan.stages:
        assert stage.runspec is not None
        again = RunSpec.model_validate_json(stage.runspec.to_json())
        assert again == stage.runspec
        assert again.hash == stage.runspec.hash


def test_planning_is_a_function_of_its_arguments() -> None:
    assert drive(quickstart())[1] == drive(quickstart())[1]


@given(
    owner=st.from_regex(r"[a-z][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True),
    step=st.from_regex(r"[a-z][a-z0-9-]{0,40}[a-z]", fullmatch=True),
)
@settings(max_examples=200, deadline=None)
def test_names_of_children_fit_and_differ(owner: str, step: str) -> None:
    name = child_name(owner, step)
    assert len(name) <= 40
    assert name != child_name(owner, step + "x")
    assert child_name(owner, step, limit=200) == f"{owner}-{step}"


def test_arms_are_validated_on_the_held_out_part_alone() -> None:
    wanted = {"source": {"source": "raw"}, "everySteps": 5}
    base = quickstart()
    training = base.spec.training.model_validate({**base.spec.training.to_wire(), "validation": wanted})
    pipeline = base.model_copy(update={"spec": base.spec.model_copy(update={"training": training})})
    _, plan = drive(pipeline)
    packed = [s for s in plan.stages if s.step.endswith(".pack-validation")]
    arms = [s for s in plan.stages if s.kind == "train" and s.arm]
    assert len(packed) == 1 < len(arms), "packed once for all arms"
    assert packed[0].runspec.pack.source.split == "heldOut"
    assert all(s.runspec.train.validation is not None for s in arms)
    tuned = next(s for s in plan.stages if s.step == "synthesizer")
    assert tuned.runspec.train.validation is None
