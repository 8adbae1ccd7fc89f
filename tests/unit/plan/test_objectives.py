"""The objectives in a plan: what their sources must say, and a synthesizer tuned on the user's own tasks."""

from __future__ import annotations

from typing import Any

import pytest

from instructpt.api.runspec import PackRun, PreparedSource, ResolvedInput, StageResult
from instructpt.errors import ConfigError
from instructpt.local.spec_file import parse_resource
from instructpt.plan import plan_resource

REFS = {("SynthesisJob", "s"): ResolvedInput(uri="s"), ("Corpus", "c"): ResolvedInput(uri="c")}
FILES = {"uri": "s3://lab/files/"}


def job(objective: str, **source: Any) -> Any:
    spec = {
        "storage": {"uri": "out"}, "init": {"from": "base"}, "objective": objective, "mixture": [source],
        "tokens": "1k",
    }  # fmt: skip
    wire = {"apiVersion": "instructpt.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "t"}, "spec": spec}
    return parse_resource(wire)


def packing(resource: Any) -> PackRun:
    plan = plan_resource(resource, {}, code_version="0", refs=REFS)
    [runspec] = [stage.runspec for stage in plan.stages if stage.kind == "pack"]
    assert runspec is not None
    assert runspec.pack is not None
    return runspec.pack


@pytest.mark.parametrize(
    ("objective", "source", "value", "fix"),
    [
        ("SynthesizerTuning", {**FILES, "format": "instructions"}, "instructions", "augmented or tasks"),
        ("SynthesizerTuning", {"ref": {"kind": "Corpus", "name": "c"}}, "corpus", "augmented or tasks"),
        ("InstructionTuning", {**FILES, "format": "tasks"}, "tasks", "format instructions, or set objective"),
        ("InstructionTuning", {"ref": {"kind": "SynthesisJob", "name": "s"}}, "augmented", "format instructions"),
        ("InstructionTuning", {**FILES, "format": "text"}, "text", "format instructions"),
    ],
)
def test_a_source_without_answers_is_refused_before_anything_runs(objective, source, value, fix):
    with pytest.raises(ConfigError) as refused:
        plan_resource(job(objective, **source), {}, code_version="0", refs=REFS)
    assert (refused.value.field, refused.value.value) == ("spec.mixture[0].format", value)
    assert fix in refused.value.fix


def test_the_sources_settings_reach_the_worker():
    pack = packing(job("SynthesizerTuning", **FILES, format="tasks", tasks={"examplesPerSequence": 2}))
    assert pack.source.tasks is not None
    assert pack.source.tasks.examples_per_sequence == 2
    assert pack.source.tasks.examples_per_dataset == 10_000
    pack = packing(job("InstructionTuning", **FILES, format="instructions", formatting={"name": "chat"}))
    assert pack.source.formatting is not None
    assert pack.source.formatting.name == "chat"


def test_what_is_as_by_default_does_not_change_the_work():
    plain = packing(job("InstructionTuning", **FILES, format="instructions"))
    assert packing(job("InstructionTuning", **FILES, format="instructions", formatting={"name": "space"})) == plain
    assert packing(job("SynthesizerTuning", **FILES, format="tasks", tasks={})) == packing(
        job("SynthesizerTuning", **FILES, format="tasks")
    )
    assert {"formatting", "tasks"} <= set(PreparedSource.model_fields)
    assert plain.source.formatting is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({**FILES, "format": "jsonl", "formatting": {"name": "chat"}}, "formatting of a mixture entry is for format"),
        ({**FILES, "format": "instructions", "tasks": {}}, "tasks for format tasks"),
        ({**FILES, "format": "instructions", "formatting": {}}, "exactly one of name and template"),
        ({**FILES, "format": "instructions", "formatting": {"name": "alpaca"}}, "space"),
        (
            {**FILES, "format": "instructions", "formatting": {"template": "{instruction} {answer}"}},
            "{instruction} is no placeholder; there are {question}, {answer} and {context}",
        ),
        ({**FILES, "format": "tasks", "tasks": {"examplesPerSequence": 0}}, "examplesPerSequence"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_field(source, message):
    with pytest.raises(ConfigError) as refused:
        job("InstructionTuning", **source)
    assert message in str(refused.value)
    assert "mixture" in str(refused.value)


def test_a_profile_of_ones_own_stands_in_the_training_and_the_default_changes_no_key():
    def training(profile: str) -> Any:
        resource = job("SynthesizerTuning", **FILES, format="tasks")
        resource = resource.model_copy(update={"spec": resource.spec.model_copy(update={"profile": profile})})
        return all_done(resource).stage("train").runspec.train

    assert training("instruction-synthesizer").profile is None
    assert training("german").profile == "german"


def pipeline(tune: dict[str, Any], *mixture: dict[str, Any]) -> Any:
    spec = {
        "storage": {"uri": "out"}, "corpus": {"uri": "texts.jsonl"},
        "synthesis": {
            "synthesizer": {"tune": {"init": {"preset": "tiny"}, "tokens": "1k", **tune}},
            "sampling": {"contextWindow": 1024},
        },
        "training": {"init": {"preset": "tiny"}, "tokens": "1k", "mixture": [{"source": "augmented"}, *mixture]},
        "arms": [{"name": "instruct"}, {"name": "vanilla"}],
    }  # fmt: skip
    return parse_resource(
        {
            "apiVersion": "instructpt.dev/v1alpha1", "kind": "InstructionPretraining", "metadata": {"name": "p"},
            "spec": spec,
        }
    )  # fmt: skip


def all_done(resource: Any) -> Any:
    results: dict[str, StageResult] = {}
    while True:
        plan = plan_resource(resource, results, code_version="0")
        stage = plan.next_stage()
        if stage is None:
            return plan
        results[stage.key] = StageResult(uri=stage.output.uri, digest=f"sha256:{len(results):064x}")


TASKS = {"uri": "s3://lab/tasks/", "endpoint": "http://s3:9000", "format": "tasks", "questionField": "ask"}


def test_a_pipeline_tunes_its_synthesizer_on_the_users_tasks_and_may_train_on_them_too():
    plan = all_done(pipeline({"mixture": [TASKS]}, {"source": "tuning", "weight": 0.25, "maxRepeats": 4}))
    steps = [stage.step for stage in plan.stages]
    assert "tuning-tasks" not in steps
    tuning = plan.stage("synthesizer.pack-source-0").runspec.pack
    training = plan.stage("train-instruct.pack-tuning").runspec.pack
    for pack in (tuning, training):
        place = (pack.source.uri, pack.source.endpoint, pack.source.format, pack.source.question_field)
        assert place == ("s3://lab/tasks/", "http://s3:9000", "tasks", "ask")
    assert (tuning.objective, training.objective) == ("SynthesizerTuning", "Pretraining")
    [_, receipt] = plan.stage("train-instruct").runspec.train.sources
    assert (receipt.weight, receipt.max_repeats) == (0.25, 4)
    # The synthesis takes the tuned model by its digest, as any job that refers to it would.
    synthesize = plan.stage("synthesis").runspec.synthesize
    assert synthesize.model.digest == plan.stage("synthesizer").result.digest


def test_the_tuning_set_of_several_sources_must_be_named_one_by_one():
    several = pipeline({"mixture": [TASKS, {**TASKS, "uri": "s3://lab/more/"}]}, {"source": "tuning"})
    with pytest.raises(ConfigError, match="several sources") as refused:
        plan_resource(several, {}, code_version="0")
    assert refused.value.field == "spec.training.mixture[].source"


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"mixture": [TASKS], "tasks": "s3://lab/augmented/"}, "tune takes tasks or mixture, not both"),
        ({"mixture": [{**TASKS, "format": "instructions", "questionField": "q"}]}, "need uri or ref, and format"),
        ({"mixture": [{"source": "augmented"}]}, "need uri or ref, and format"),
    ],
)
def test_a_tuning_mixture_names_answers(tune, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(tune)
