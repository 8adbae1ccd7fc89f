"""Arms of ``bench-synthesis`` that run in the project's environment; each in a process of its own.

``worker``: the product's worker on a RunSpec, with a note of when its engine was up and what it was asked. ``raw``: the
bare engine on ready ids. ``reference``: the reference's own functions from the user's checkout. A child reads one line
of JSON and prints one behind the word RESULT.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefixes import Request, tally

Found = dict[str, Any]


def note_of(engine: Any, record: list[Request], ready_file: str | None) -> dict[str, float]:
    """Have an engine class note in ``record`` what it is asked; when it is up stands in the answer, and in a file."""
    times: dict[str, float] = {}
    enter, generate = engine.__aenter__, engine.generate

    async def noted_enter(self: Any) -> Any:
        started = await enter(self)
        times.setdefault("ready", time.time())
        if ready_file is not None:
            path = Path(ready_file)
            path.with_suffix(".part").write_text(repr(times["ready"]))
            path.with_suffix(".part").replace(path)
        return started

    async def noted_generate(self: Any, request: Any) -> Any:
        completion = await generate(self, request)
        record.append(
            Request(prompt=request.prompt_ids, completion=completion.token_ids, cached=completion.cached_tokens)
        )
        return completion

    engine.__aenter__, engine.generate = noted_enter, noted_generate
    return times


def run_worker(job: Found) -> Found:
    """The product's worker. ``prompts``: a file for the ids that its engine was given, for the arm ``raw``."""
    from instructpt.cli.worker import run_worker as work
    from instructpt.synthesis.vllm_engine import VllmEngine

    record: list[Request] = []
    times = note_of(VllmEngine, record, job.get("ready_file"))
    begun = time.time()
    code = work("synthesize", Path(job["spec"]), job["hash"])
    assert code == 0, f"the worker ended with {code}"
    if job.get("prompts"):
        Path(job["prompts"]).write_text(json.dumps([list(request.prompt) for request in record]))
    return {"ready": times["ready"], "start_seconds": times["ready"] - begun, **tally(record, job["block_size"])}


def bare_engine(job: Found) -> Any:
    """``vllm.LLM`` with the settings of the other arms."""
    from instructpt.synthesis.vllm_engine import load

    load()  # the environment that the CPU build needs, as the product sets it
    from vllm import LLM

    return LLM(model=job["model"], max_model_len=job["context_window"], disable_log_stats=True, **job["engine"])


def run_raw(job: Found) -> Found:
    """Limit: one ``LLM.generate`` on ready ids: no storage, no text, no order to keep."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    begun = time.time()
    llm = bare_engine(job)
    ready = time.time()
    params = SamplingParams(
        temperature=0.0,
        max_tokens=job["max_tokens"],
        stop_token_ids=[job["eos"]],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(Path(job["prompts"]).read_text())]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "start_seconds": ready - begun, **tally(_requests(outputs), job["block_size"])}


def _requests(outputs: Sequence[Any]) -> list[Request]:
    return [
        Request(
            prompt=output.prompt_token_ids,
            completion=output.outputs[0].token_ids,
            cached=int(output.num_cached_tokens or 0),
        )
        for output in outputs
    ]


def run_reference(job: Found) -> Found:
    """Peer: rounds over the whole corpus by the functions of the user's checkout, unmodified, for each M in turn."""
    sys.path.insert(0, job["checkout"])
    from vllm import SamplingParams

    reference = importlib.import_module("utils.read_compre")
    begun = time.time()
    llm = bare_engine(job)
    start_seconds = time.time() - begun
    outputs: list[Any] = []

    class Noting:
        """The engine, with its outputs kept for the count of prefix hits."""

        def generate(self, *arguments: Any, **options: Any) -> Any:
            found = llm.generate(*arguments, **options)
            outputs.extend(found)
            return found

    params = SamplingParams(temperature=0, max_tokens=job["max_tokens"])
    documents = [json.loads(line)["text"] for line in Path(job["documents"]).read_text().splitlines()]
    found: Found = {"start_seconds": start_seconds}
    for shots in job["shots"]:
        llm.reset_prefix_cache()
        outputs.clear()
        started = time.perf_counter()
        size = -(-len(documents) // shots)
        chains: list[Any] = []
        for number in range(shots):
            texts = documents[number * size : (number + 1) * size]
            data = reference.get_dataset(chains, texts, job["context_window"], job["max_tokens"])
            chains = reference.run(data, Noting(), params)
        texts = [t for seed, chain in enumerate(chains, 12345) for t in reference.cook_pt_entries(chain, seed)]
        seconds = time.perf_counter() - started
        pairs = sum(text.count("?") for text in texts)
        counts = tally(_requests(outputs), job["block_size"])
        found[str(shots)] = {"seconds": seconds, "texts": len(texts), "questions": pairs, **counts}
    return found


ARMS: dict[str, Callable[[Found], Found]] = {"worker": run_worker, "raw": run_raw, "reference": run_reference}

if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    work = json.loads(sys.stdin.readline())
    print("\nRESULT " + json.dumps(ARMS[sys.argv[1]](work)), flush=True)
