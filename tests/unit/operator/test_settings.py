"""R22: settings are read once, frozen, and known by a hash."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from instructpt.cluster.context import DEFAULT_IMAGES
from instructpt.errors import ConfigError
from instructpt_operator.settings import Settings, load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(folder, text), {})
    return str(caught.value)


def test_defaults_are_those_of_the_guide() -> None:
    settings = load_settings(None, {})
    assert (settings.workers, settings.qps, settings.burst, settings.resync_seconds) == (5, 100.0, 200, 600.0)
    lease = settings.lease
    assert (lease.duration_seconds, lease.renew_deadline_seconds, lease.retry_seconds) == (15, 10.0, 2.0)
    assert settings.watch_namespaces == ()
    assert (settings.progress.interval_seconds, settings.progress.sample) == (10.0, 20)
    assert settings.render_images() == DEFAULT_IMAGES


def test_r22_settings_are_frozen() -> None:
    settings = load_settings(None, {})
    with pytest.raises(ValidationError):
        settings.qps = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.lease.name = "x"  # type: ignore[misc]


def test_r22_hash_is_of_the_values_and_of_nothing_else(tmp_path: Path) -> None:
    default = load_settings(None, {}).hash
    assert len(default) == 16
    assert int(default, 16) >= 0
    written_out = write(tmp_path, yaml.safe_dump(Settings().model_dump(mode="json", by_alias=True), sort_keys=True))
    assert load_settings(written_out, {}).hash == default
    assert load_settings(write(tmp_path, "qps: 100\n"), {}).hash == default
    assert load_settings(write(tmp_path, "qps: 101\n"), {}).hash != default
    assert load_settings(write(tmp_path, "images: {trainer: {cpu: a/b:1}}\n"), {}).hash != default


def test_file_and_environment_reach_every_level(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "watchNamespaces: [a, b]\nlease: {name: one, durationSeconds: 30}\n"
        "images: {synthesizer: {cuda: s/cuda:1}, trainer: {cpu: t/cpu:1}, pullPolicy: Never}\n",
    )
    environ = {
        "INSTRUCTPT_LEASE__NAME": "two",
        "INSTRUCTPT_LEASE__ENABLED": "false",
        "INSTRUCTPT_WATCH_NAMESPACES": "c, d",
        "INSTRUCTPT_IMAGES__TRAINER__CUDA": "t/cuda:2",
        "INSTRUCTPT_QPS": "50",
    }
    settings = load_settings(path, environ)
    assert settings.watch_namespaces == ("c", "d")
    assert (settings.lease.name, settings.lease.enabled, settings.lease.duration_seconds) == ("two", False, 30)
    assert settings.qps == 50
    images = settings.render_images()
    assert images.pull_policy == "Never"
    assert images.by_role == {
        ("operator", "cpu"): DEFAULT_IMAGES.by_role["operator", "cpu"],
        ("synthesizer", "cuda"): "s/cuda:1",
        ("synthesizer", "cpu"): DEFAULT_IMAGES.by_role["synthesizer", "cpu"],
        ("trainer", "cuda"): "t/cuda:2",
        ("trainer", "cpu"): "t/cpu:1",
    }


def test_variables_of_services_and_workers_change_nothing() -> None:
    environ = {
        "INSTRUCTPT_METRICS_PORT": "tcp://10.0.0.1:8080",  # of a Service named instructpt-metrics
        "INSTRUCTPT_METRICS_SERVICE_HOST": "10.0.0.1",
        "INSTRUCTPT_PORT": "tcp://10.0.0.2:80",
        "INSTRUCTPT_METRICS": "x",
        "INSTRUCTPT_LEASE": "x",
        "INSTRUCTPT_QPS__X": "1",
        "INSTRUCTPT_LOG_LEVEL": "DEBUG",
        "INSTRUCTPT_THREADS": "2",
    }
    assert load_settings(None, environ) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("watchNamespace: [a]", "watchNamespace=['a']: unknown field; did you mean watchNamespaces?"),
        ("watch_namespaces: [a]", "watch_namespaces=['a']: unknown field; did you mean watchNamespaces?"),
        ("lease: {nam: x}", "lease.nam='x': unknown field; did you mean name?"),
        ("images: {trainer: {gpu: x}}", "images.trainer.gpu='x': unknown field; did you mean cpu?"),
        ("zzzzzz: 1", "zzzzzz=1: unknown field; known here: burst, health, images"),
        ("qps: 0", "qps=0: Input should be greater than 0"),
        ("workers: many", "workers='many': Input should be a valid integer"),
        ("lease: {retrySeconds: 20}", "use 2, 10 and 15"),
        ("metrics: {port: 70000}", "metrics.port=70000: Input should be less than or equal to 65535"),
        ("images: {pullPolicy: Sometimes}", "images.pullPolicy='Sometimes'"),
        ("- a", "is a list, expected names and values"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_wrong_settings_are_refused_with_field_value_and_fix(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "qps: -1\nburst: 0\nfoo: 1\n")
    assert [part in said for part in ("qps=-1", "burst=0", "foo=1")] == [True] * 3


def test_missing_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_settings(tmp_path / "none.yaml", {})
    assert load_settings(write(tmp_path, "# nothing\n"), {}) == Settings()
