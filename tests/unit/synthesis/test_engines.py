"""Engines without a model: registry, settings, missing packages, arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import synthesis_support as support

from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis import engine, transformers_engine, vllm_engine
from instructpt.synthesis.engine import EngineSettings, open_engine, registry, require


def test_the_registry_knows_the_engines_that_ship() -> None:
    assert {"openai", "transformers", "vllm"} <= set(registry.names())
    with pytest.raises(ConfigError, match="known: .*vllm"):
        open_engine("vlm", Path(), Engine(), Sampling())


def test_a_missing_package_names_the_one_command() -> None:
    with pytest.raises(EnvironmentNotReadyError, match=r"pip install 'instructpt\[synthesis\]'"):
        require("instructpt_no_such_package", needed_by="engine openai")
    with pytest.raises(EnvironmentNotReadyError, match=r"pip install 'instructpt\[vllm\]'"):
        require("instructpt_no_such_package", needed_by="engine vllm", command=vllm_engine.INSTALL)


def test_importing_the_worker_loads_no_heavy_library() -> None:
    code = (
        "import sys, instructpt.synthesis.worker, instructpt.synthesis.openai_engine, instructpt.synthesis.vllm_engine;"
        "sys.exit(' '.join({'torch', 'transformers', 'vllm', 'httpx'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


def test_an_unknown_argument_of_vllm_is_refused_with_what_comes_near() -> None:
    known = {"gpu_memory_utilization", "max_num_seqs", "model"}
    with pytest.raises(ConfigError, match=r"engine\.args\.max_num_seq=8: .*did you mean max_num_seqs"):
        vllm_engine.check_args({"max_num_seq": 8}, known)
    with pytest.raises(ConfigError, match=r"engine\.args\.max_model_len=1: .*sampling\.contextWindow"):
        vllm_engine.check_args({"max_model_len": 1}, known)
    vllm_engine.check_args({"max_num_seqs": 8}, known)


def test_a_block_size_that_a_cpu_cannot_use_is_refused_with_one_that_it_can() -> None:
    for size, near in ((16, 32), (40, 32), (100, 96)):
        with pytest.raises(ConfigError, match=rf"engine\.args\.block_size={size}: .*use {near}"):
            vllm_engine.check_block_size(size)
    vllm_engine.check_block_size(128)
    vllm_engine.check_block_size(None)


@pytest.mark.parametrize(
    ("args", "field"), [({"dtype": "x"}, "engine.args.dtype"), ({"device": "tpu"}, "engine.args.device")]
)
def test_arguments_of_transformers_are_checked_before_the_model_is_read(args: dict[str, str], field: str) -> None:
    pytest.importorskip("torch")
    settings = EngineSettings(model=Path("nowhere"), spec=Engine(name="transformers", args=args), sampling=Sampling())
    with pytest.raises(ConfigError, match=field):
        transformers_engine.create(settings)


def test_threads_come_from_the_environment_or_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(transformers_engine.THREADS, raising=False)
    assert transformers_engine._threads(1_000_000, 1) == 1
    assert transformers_engine._threads(10**9, 10**6) == 1
    monkeypatch.setenv(transformers_engine.THREADS, "3")
    assert transformers_engine._threads(1_000_000, 1) == 3
    monkeypatch.setenv(transformers_engine.THREADS, "many")
    with pytest.raises(ConfigError, match=transformers_engine.THREADS):
        transformers_engine._threads(1, 1)


def test_a_scripted_engine_is_an_engine() -> None:
    assert isinstance(support.ScriptedEngine(lambda prompt: ""), engine.Engine)
