from __future__ import annotations

import json
import re
from typing import Any

import pytest
import rendering
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.api.pods import OPEN_ENV
from instructpt.api.runspec import MAX_RUNSPEC_BYTES, RunSpec
from instructpt.cluster.grace import grace_seconds
from instructpt.cluster.meta import task_labels
from instructpt.cluster.pods import _FIXED_ENV, secret_names
from instructpt.cluster.render import render_plan, render_runspec, render_task, to_yaml
from instructpt.errors import ConfigError
from instructpt.local.spec_file import parse_resource
from instructpt.plan import plan_resource

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
ALL = {
    "corpus": rendering.corpus(),
    "synthesis": rendering.synthesis(),
    "training": rendering.training(gpusPerNode=8),
    "training-cpu": rendering.training(nodes=1, init={"preset": "tiny"}),
    "evaluation": rendering.evaluation(),
    "pod-template": rendering.synthesis(podTemplate=rendering.POD_TEMPLATE),
}


def job(resource: Any, task: str, **kwargs: Any) -> dict[str, Any]:
    return rendering.rendered(resource, task, **kwargs)[1]


def pod(obj: dict[str, Any]) -> dict[str, Any]:
    spec = rendering.pod_templates(obj)[0]["spec"]
    assert isinstance(spec, dict)
    return spec


def env(obj: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value") for e in pod(obj)["containers"][0]["env"]}


# Metadata


def test_the_owner_is_the_controller_where_it_has_a_uid() -> None:
    config, work = rendering.rendered(rendering.corpus(), "corpus")
    for obj in (config, work):
        assert obj["metadata"]["ownerReferences"] == [
            {
                "apiVersion": "instructpt.dev/v1alpha1",
                "kind": "Corpus",
                "name": "demo",
                "uid": rendering.UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    for obj in rendering.rendered(rendering.corpus(), "corpus", uid="", namespace=""):
        assert "ownerReferences" not in obj["metadata"]
        assert "namespace" not in obj["metadata"]


def test_the_attempt_stands_in_name_and_labels() -> None:
    obj = job(rendering.corpus(), "corpus", attempt=7)
    assert obj["metadata"]["name"] == "demo-corpus-7"
    assert obj["metadata"]["labels"]["instructpt.dev/attempt"] == "7"
    assert obj["metadata"]["annotations"]["instructpt.dev/stage-key"].startswith("s3://lab/out#")


@pytest.mark.parametrize("resource", ALL.values(), ids=ALL)
def test_pods_carry_the_labels_that_select_them(resource: Any) -> None:
    for stage, task in rendering.tasks(resource):
        ctx = rendering.context(resource)
        wanted = task_labels(task, 2, ctx)
        obj = render_task(stage, task, 2, ctx)
        for template in rendering.pod_templates(obj):
            assert wanted.items() <= template["metadata"]["labels"].items()
            assert wanted.items() <= obj["metadata"]["labels"].items()


def test_the_queue_is_on_compute_children_alone() -> None:
    label = "kueue.x-k8s.io/queue-name"
    for resource in (rendering.synthesis(), rendering.training(queueName="lab-queue")):
        for obj in rendering.everything(resource):
            labels = obj["metadata"]["labels"]
            is_work = obj["kind"] != "ConfigMap" and labels["instructpt.dev/task"] == "work"
            assert labels.get(label) == ("lab-queue" if is_work else None)
            assert all(label not in t["metadata"]["labels"] for t in rendering.pod_templates(obj))


# RunSpec


def test_the_runspec_is_immutable_and_has_the_hash_of_argv() -> None:
    config, work = rendering.rendered(rendering.synthesis(), "synthesis")
    spec = RunSpec.model_validate_json(config["data"]["runspec.json"])
    args = pod(work)["containers"][0]["args"]
    assert config["immutable"] is True
    assert args[args.index("--hash") + 1] == spec.hash
    assert config["metadata"]["name"] == f"demo-synthesis-{spec.hash[:8]}"
    volume = next(v for v in pod(work)["volumes"] if v["name"] == "runspec")
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    path = args[args.index("--run-spec") + 1]
    mount = next(m for m in pod(work)["containers"][0]["volumeMounts"] if m["name"] == "runspec")
    assert path == f"{mount['mountPath']}/{next(iter(config['data']))}"


def test_a_runspec_of_50_sources_stays_below_64_kib() -> None:
    mixture = [{"name": f"source-{i}", "uri": f"s3://lab/{'x' * 200}/{i}", "format": "augmented"} for i in range(50)]
    resource = rendering.training(mixture=mixture)
    sizes = [
        len(o["data"]["runspec.json"].encode()) for o in rendering.everything(resource) if o["kind"] == "ConfigMap"
    ]
    assert len(sizes) == 2 * 51
    assert max(sizes) <= MAX_RUNSPEC_BYTES


# Jobs


@pytest.mark.parametrize(("limit", "per_index"), [(0, 0), (3, 3), (100, 6)])
def test_workers_are_restarted_within_bounds(limit: int, per_index: int) -> None:
    spec = job(rendering.synthesis(backoffLimit=limit), "synthesis")["spec"]
    assert spec["backoffLimitPerIndex"] == per_index
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (3, 3, "Indexed")
    assert not {"maxFailedIndexes", "backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"} & spec.keys()


def test_exit_codes_decide_what_counts() -> None:
    rules = job(rendering.synthesis(), "synthesis")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = {code: r["action"] for r in rules[1:] for code in r["onExitCodes"]["values"]}
    assert codes == {75: "FailIndex", 42: "FailIndex", 43: "FailJob"}
    assert {r["onExitCodes"]["containerName"] for r in rules[1:]} == {"worker"}


def test_a_finishing_task_is_one_small_pod_without_gpu() -> None:
    obj = job(rendering.synthesis(podTemplate=rendering.POD_TEMPLATE), "synthesis-finalize")
    spec, container = obj["spec"], pod(obj)["containers"][0]
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert spec["podFailurePolicy"]["rules"][-1]["onExitCodes"]["values"] == [42, 43]
    assert "backoffLimitPerIndex" not in spec
    assert container["image"] == "example.org/operator:1"
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"]["limits"] == {"memory": "2Gi", "ephemeral-storage": "100Gi"}
    assert pod(obj)["terminationGracePeriodSeconds"] == 60
    assert pod(obj)["imagePullSecrets"] == [{"name": "registry"}]
    assert not {"nodeSelector", "affinity"} & pod(obj).keys()
    assert "tolerations" in pod(obj)


def test_managed_by_is_about_the_object_alone() -> None:
    """An object of another controller is not rendered here; one of ours must not hand its Jobs to somebody else."""
    ours = "instructpt.dev/operator"
    assert "managedBy" not in job(rendering.synthesis(managedBy=ours), "synthesis")["spec"]
    assert "managedBy" not in job(rendering.training(managedBy=ours), "train")["spec"]["runPolicy"]


# Pods


@pytest.mark.parametrize("resource", ALL.values(), ids=ALL)
def test_pods_are_restricted(resource: Any) -> None:
    found = [t["spec"] for o in rendering.everything(resource) for t in rendering.pod_templates(o)]
    assert found
    for spec in found:
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert not [v for v in spec["volumes"] if "hostPath" in v]
        for container in spec["containers"]:
            assert container["command"] == ["instructpt"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("resource", ALL.values(), ids=ALL)
def test_whatever_is_written_lies_in_a_mounted_volume(resource: Any) -> None:
    for obj in rendering.everything(resource):
        for template in rendering.pod_templates(obj):
            container = template["spec"]["containers"][0]
            volumes = {v["name"]: v for v in template["spec"]["volumes"]}
            writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            assert {m["name"] for m in container["volumeMounts"]} <= volumes.keys()
            for entry in container["env"]:
                value = entry.get("value", "")
                if value.startswith("/"):
                    assert any(value == p or value.startswith(f"{p}/") for p in writable), entry


@pytest.mark.parametrize(
    ("resource", "task", "image"),
    [
        (rendering.corpus(), "corpus", "operator:1"),
        (rendering.synthesis(), "synthesis", "synthesizer:1"),
        (rendering.synthesis(engine={"name": "transformers"}), "synthesis", "synthesizer:1-cpu"),
        (rendering.training(gpusPerNode=8), "train", "trainer:1"),
        (rendering.training(), "train", "trainer:1-cpu"),
        (rendering.training(gpusPerNode=8), "train.pack-pairs", "trainer:1-cpu"),
        (rendering.training(gpusPerNode=8), "train-finalize", "operator:1"),
        (rendering.evaluation(), "evaluation", "trainer:1"),
        (rendering.evaluation(podTemplate={"image": "mine:1"}), "evaluation", "mine:1"),
        (rendering.evaluation(podTemplate={"image": "mine:1"}), "evaluation-finalize", "trainer:1-cpu"),
    ],
)
def test_images_go_by_role_and_accelerator(resource: Any, task: str, image: str) -> None:
    found = pod(job(resource, task))["containers"][0]["image"]
    assert found == (image if image.startswith("mine") else f"example.org/{image}")


def test_every_secret_of_the_runspec_is_a_read_only_folder() -> None:
    spec = pod(job(rendering.synthesis(), "synthesis"))
    secrets = {v["name"]: v["secret"] for v in spec["volumes"] if "secret" in v}
    mounts = {m["name"]: m for m in spec["containers"][0]["volumeMounts"]}
    assert {s["secretName"] for s in secrets.values()} == {"lab", "raw-data"}
    for name, secret in secrets.items():
        assert secret["optional"] is False
        assert mounts[name]["mountPath"] == f"/var/run/instructpt/secrets/{secret['secretName']}"
        assert mounts[name]["readOnly"] is True
    assert all("valueFrom" not in e or "fieldRef" in e["valueFrom"] for e in spec["containers"][0]["env"])


def test_secrets_of_evaluation_sets_are_mounted_for_workers_and_the_finishing_task() -> None:
    sets = [{"uri": "s3://exams/questions.jsonl", "secretRef": {"name": "exams"}}]
    filters = {"decontaminate": {"sets": sets}}
    for resource in (rendering.corpus(filters=filters), rendering.synthesis(filters=filters)):
        for _, task in rendering.tasks(resource):
            assert "exams" in secret_names(task)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "A", "a:b", "-", "a" * 254])
def test_a_name_that_would_be_another_path_is_refused(name: str) -> None:
    resource = rendering.corpus()
    _, task = next(rendering.tasks(resource))
    output = task.runspec.output
    secret = output.secret_ref
    assert secret is not None
    wrong = output.model_copy(update={"secret_ref": secret.model_copy(update={"name": name})})
    task = type(task)(name=task.name, runspec=task.runspec.model_copy(update={"output": wrong}))
    with pytest.raises(ConfigError, match="not the name of a Secret"):
        secret_names(task)


def test_shared_memory_is_there_for_ranks_and_tensor_parallelism() -> None:
    def has(resource: Any, task: str) -> bool:
        return {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod(job(resource, task))["volumes"]

    assert has(rendering.training(), "train")
    assert has(rendering.synthesis(), "synthesis")
    assert not has(rendering.synthesis(), "synthesis-finalize")
    assert not has(rendering.synthesis(engine={"name": "transformers"}), "synthesis")
    assert not has(rendering.corpus(), "corpus")


@pytest.mark.parametrize(("cpus", "cpu", "threads"), [(8, "8", "8"), (0.5, "500m", "1"), (2.75, "2750m", "2")])
def test_cores_are_asked_for_and_told_to_the_worker(cpus: float, cpu: str, threads: str) -> None:
    obj = job(rendering.training(resources={"cpus": cpus, "memory": "3Gi"}), "train")
    assert pod(obj)["containers"][0]["resources"] == {
        "requests": {"cpu": cpu, "memory": "3Gi"},
        "limits": {"memory": "3Gi"},
    }
    assert env(obj)["INSTRUCTPT_THREADS"] == threads


def resources_of(resource: Any, task: str) -> dict[str, Any]:
    found = pod(job(resource, task))["containers"][0]["resources"]
    assert isinstance(found, dict)
    return found


EVERY_KIND = (
    (rendering.corpus, "corpus"),
    (rendering.synthesis, "synthesis"),
    (rendering.training, "train.tokenizer"),
    (rendering.training, "train.pack-pairs"),
    (rendering.training, "train"),
    (rendering.evaluation, "evaluation"),
    (rendering.pipeline, "report-finalize"),
    (rendering.corpus, "corpus-finalize"),
)


@pytest.mark.parametrize(("make", "task"), EVERY_KIND, ids=lambda v: v if isinstance(v, str) else "")
def test_every_pod_asks_for_something(make: Any, task: str) -> None:
    """A pod without requests is evicted first, and a quota on requests refuses it."""
    tokenizer = {"tokenizer": {"train": {}}} if task == "train.tokenizer" else {}
    assert {"cpu", "memory"} <= resources_of(make(**tokenizer), task)["requests"].keys()


@pytest.mark.parametrize(("make", "task"), EVERY_KIND, ids=lambda v: v if isinstance(v, str) else "")
def test_resources_of_the_pod_template_hold_for_every_pod(make: Any, task: str) -> None:
    wanted = {"requests": {"ephemeral-storage": "1Gi"}, "limits": {"cpu": "20", "ephemeral-storage": "9Gi"}}
    tokenizer = {"tokenizer": {"train": {}}} if task == "train.tokenizer" else {}
    found = resources_of(make(podTemplate={"resources": wanted}, **tokenizer), task)
    assert wanted["requests"].items() <= found["requests"].items()
    assert wanted["limits"].items() <= found["limits"].items()


def test_what_nobody_asked_for_is_small() -> None:
    assert resources_of(rendering.corpus(), "corpus") == {"requests": {"cpu": "100m", "memory": "256Mi"}}
    finalize = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    assert resources_of(rendering.corpus(), "corpus-finalize") == finalize


def test_a_finishing_task_gets_the_memory_that_the_pod_template_gives() -> None:
    given = {"limits": {"memory": "16Gi"}}
    found = resources_of(rendering.corpus(podTemplate={"resources": given}), "corpus-finalize")
    assert found == {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "16Gi"}}


def test_what_the_stage_asks_for_comes_before_the_pod_template() -> None:
    given = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
    found = resources_of(rendering.synthesis(podTemplate={"resources": given}), "synthesis")
    # Of 8 cores with a limit of 2 the server would refuse the pod.
    assert found["requests"] == {"cpu": "8", "memory": "64Gi"}
    assert found["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}


def test_a_limit_below_our_request_lowers_the_request() -> None:
    found = resources_of(rendering.corpus(podTemplate={"resources": {"limits": {"memory": "128Mi"}}}), "corpus")
    assert found == {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}}


@pytest.mark.parametrize("name", ["HOME", "TMPDIR", "USER", "HF_HOME", "XDG_CACHE_HOME", "INSTRUCTPT_MODEL_CACHE"])
def test_homes_and_caches_are_the_users_to_move(name: str) -> None:
    template = {"env": [{"name": name, "value": "/elsewhere"}]}
    found = [e for e in pod(job(rendering.corpus(podTemplate=template), "corpus"))["containers"][0]["env"]]
    assert [e["value"] for e in found if e["name"] == name] == ["/elsewhere"]


def test_a_variable_that_a_worker_finds_its_work_by_is_kept_and_refused() -> None:
    """The API refuses all of them; rendering keeps its own whatever it is given."""
    names = [e["name"] for e in pod(job(rendering.corpus(), "corpus"))["containers"][0]["env"]]
    ours = [name for name in names if name.startswith("INSTRUCTPT_") and name not in OPEN_ENV]
    assert set(ours) == set(_FIXED_ENV)
    for name in ours:
        with pytest.raises(ConfigError, match="podTemplate.env must not set"):
            rendering.corpus(podTemplate={"env": [{"name": name, "value": "1"}]})


def test_the_pod_template_adds_and_never_replaces_what_the_worker_relies_on() -> None:
    template = rendering.pod_templates(job(ALL["pod-template"], "synthesis"))[0]
    spec, container = template["spec"], template["spec"]["containers"][0]
    values = [e for e in container["env"] if e["name"] in ("HF_HOME", "NCCL_DEBUG")]
    assert values == [{"name": "HF_HOME", "value": "/data/hub"}, {"name": "NCCL_DEBUG", "value": "WARN"}]
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes["models"] == {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    assert "configMap" in volumes["runspec"]
    assert len(volumes) == len(spec["volumes"])
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert len(mounts) == len(container["volumeMounts"])
    assert mounts["/etc/instructpt/runspec"] == "runspec"
    assert mounts["/data"] == "data"
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]
    assert spec["serviceAccountName"] == "default"
    assert spec["terminationGracePeriodSeconds"] == 17
    assert template["metadata"]["annotations"] == {"note": "mine"}
    assert template["metadata"]["labels"]["team"] == "nlp"


# Grace


def grace(**spec: Any) -> int:
    return grace_seconds(next(s for s, _ in rendering.tasks(rendering.training(**spec)) if s.kind == "train").runspec)  # type: ignore[arg-type]


def test_a_training_gets_the_time_that_its_state_takes_to_upload() -> None:
    config = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    seven_billion = {"init": {"config": {**config, "model_type": "llama", "vocab_size": 32000}}}
    parameters = 6_738_415_616
    assert grace(**seven_billion, nodes=1) == 60 + -(-2 * 12 * parameters // 200_000_000)
    assert grace(**seven_billion, checkpoint={"uploadBytesPerSecond": 20_000_000_000}) == 120
    assert grace(init={"preset": "tiny"}) == 120
    # From a name that tells; where nothing does, enough for a model that most would start from.
    named = {"init": {"from": "meta-llama/Meta-Llama-3-8B"}}
    assert grace(**named, nodes=1) == 60 + 2 * 12 * 8_000_000_000 // 200_000_000
    assert grace(**named, nodes=4) == 60 + 2 * 12 * 2_000_000_000 // 200_000_000
    assert grace(init={"from": "some/model"}) == 1200


# Plans


def test_a_pipeline_is_its_children_and_what_each_of_them_would_run_now() -> None:
    resource = rendering.pipeline(podTemplate={"image": "mine:1"})
    plan = plan_resource(resource, {}, code_version=rendering.VERSION)
    objects = render_plan(resource, plan, rendering.context(resource, uid=""))
    named = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert named[0] == ("Corpus", "demo-corpus")
    assert [kind for kind, _ in named[1:5]] == ["ConfigMap", "Job", "ConfigMap", "Job"]
    assert [kind for kind, _ in named[5:]] == ["SynthesisJob", "TrainingJob", "TrainingJob", "EvaluationJob"]
    inspect = objects[2]
    assert inspect["metadata"]["labels"]["instructpt.dev/kind"] == "Corpus"
    assert inspect["metadata"]["labels"]["instructpt.dev/name"] == "demo-corpus"
    assert pod(inspect)["containers"][0]["image"] == "mine:1"
    assert objects[0]["metadata"]["labels"]["instructpt.dev/name"] == "demo"
    parsed = [parse_resource(o) for o in objects if o["apiVersion"] == "instructpt.dev/v1alpha1"]
    assert len(parsed) == 5


def test_the_report_of_a_pipeline_belongs_to_the_pipeline() -> None:
    resource = rendering.pipeline()
    objects = render_plan(resource, rendering.finished(resource), rendering.context(resource))
    assert objects[-1]["metadata"]["name"] == "demo-report-finalize-1"
    assert objects[-1]["metadata"]["ownerReferences"][0]["kind"] == "InstructionPretraining"
    assert pod(objects[-1])["containers"][0]["image"] == "example.org/trainer:1-cpu"


def test_yaml_has_no_anchors_and_says_the_same_again() -> None:
    objects = rendering.everything(rendering.training())
    text = to_yaml(objects)
    assert "&id" not in text
    assert list(yaml.safe_load_all(text)) == json.loads(json.dumps(objects))


ARM = st.text(alphabet=st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=60)


@settings(max_examples=25, deadline=None)
@given(
    name=st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?\Z"),
    sources=st.lists(ARM, min_size=1, max_size=4, unique=True),
    attempt=st.integers(1, 999),
)
def test_names_fit_and_rendering_is_deterministic(name: str, sources: list[str], attempt: int) -> None:
    wire = rendering.training(
        mixture=[{"name": s, "uri": f"s3://lab/{i}", "format": "augmented"} for i, s in enumerate(sources)]
    ).to_wire()
    resource = parse_resource({**wire, "metadata": {"name": name}})
    ctx = rendering.context(resource)
    for stage, task in rendering.tasks(resource):
        obj, config = render_task(stage, task, attempt, ctx), render_runspec(task, ctx)
        assert to_yaml([obj, config]) == to_yaml([render_task(stage, task, attempt, ctx), render_runspec(task, ctx)])
        assert len(obj["metadata"]["name"]) <= 52
        assert DNS_LABEL.fullmatch(obj["metadata"]["name"])
        assert SUBDOMAIN.fullmatch(config["metadata"]["name"])
        assert DNS_LABEL.fullmatch(config["metadata"]["name"])
        for labels in (obj["metadata"]["labels"], config["metadata"]["labels"]):
            assert all(LABEL_VALUE.fullmatch(value) for value in labels.values()), labels
