"""Peer: datatrove's InferenceRunner on an endpoint; runs in datatrove's environment.

One line of JSON in, one out behind the word RESULT. The clock runs from the start of its pipeline to its end; the
server is up before.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


async def ask(document: Any, generate: Any) -> Any:
    """One request a document; the prompt is its text."""
    found = await generate({"prompt": document.text})
    return {"text": found.text, "usage": found.usage}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run the pipeline and count what it wrote."""
    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=job["endpoint"],
        model_name_or_path=job["model"],
        model_max_context=job["context_window"],
        use_chat=False,
        max_concurrent_generations=job["requests"],
        default_generation_params=job["sampling"],
    )
    runner = InferenceRunner(rollout_fn=ask, config=config, output_writer=JsonlWriter(job["output"], compression=None))
    reader = JsonlReader(job["folder"])
    begun = time.perf_counter()
    LocalPipelineExecutor(pipeline=[reader, runner], logging_dir=job["logs"], tasks=1).run()
    seconds = time.perf_counter() - begun
    usages = []
    with open(f"{job['output']}/00000.jsonl") as lines:
        for line in lines:
            usages += [found["usage"] for found in json.loads(line)["metadata"]["rollout_results"]]
    return {
        "seconds": seconds,
        "requests": len(usages),
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "completion_tokens": sum(usage["completion_tokens"] for usage in usages),
    }


if __name__ == "__main__":
    print("\nRESULT " + json.dumps(main(json.loads(sys.stdin.readline()))), flush=True)
