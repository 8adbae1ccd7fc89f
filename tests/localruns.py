"""Runs of the real command on small corpora, and a way to kill its workers at a chosen write."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TINY = {
    "config": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }
}  # fmt: skip

# Python imports this module at start-up of every process that has its folder on PYTHONPATH. It ends the process with
# SIGKILL at the n-th write to a folder store: once for each number in KILL_AT and each task.
SITECUSTOMIZE = """
import os, signal, sys
from pathlib import Path

if "worker" in sys.orig_argv:
    from instructpt.storage import filesystem

    name = os.environ["INSTRUCTPT_WORKER_ID"]
    marks = Path(os.environ["KILL_MARKS"])
    todo = [n for n in os.environ["KILL_AT"].split(",") if not (marks / f"{name}-{n}").exists()]
    count = 0

    def killing(method):
        def wrapped(self, *args, **kwargs):
            global count
            result = method(self, *args, **kwargs)
            count += 1
            if todo and count == int(todo[0]):
                (marks / f"{name}-{todo[0]}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped

    store = next(c for n, c in vars(filesystem).items() if n.lower().endswith("store") and hasattr(c, "put_file")
                 and c.__module__ == filesystem.__name__)
    for verb in ("put", "put_file", "create"):
        setattr(store, verb, killing(getattr(store, verb)))
"""


def sentences(number: int) -> str:
    """A short document of real-looking prose, different for every number."""
    people = ["Ada", "Boris", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo"]
    towns = ["Lisbon", "Quito", "Oslo", "Hanoi", "Turin", "Perth", "Lagos", "Kyoto"]
    trades = ["a baker", "a sailor", "a surgeon", "an engineer", "a potter", "a teacher"]
    person, town = people[number % 8], towns[(number * 3 + 1) % 8]
    trade, other = trades[number % 6], towns[(number * 5 + 2) % 8]
    return (
        f"{person} {number} is {trade} who lives in {town}. {person} moved to {town} from {other} because the work "
        f"there was better. However, {person} returns to {other} every summer, so the family stays close. "
        f"The house in {town} has {number % 7 + 2} rooms and was built in {1900 + number}. It is small, but it is warm."
    )


def write_corpus(path: Path, documents: int) -> None:
    """A jsonl corpus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": sentences(i)}) + "\n" for i in range(documents)))


def pipeline(folder: Path, *, corpus: Path | None = None, storage: str | None = None, **spec: Any) -> Path:
    """Write a small but whole pipeline, with a tuned synthesizer and two arms, and return its file.

    Runs that shall give equal bytes read one ``corpus``: a manifest names the objects that its micro-shards lie in.
    """
    training = {
        "init": TINY, "tokenizer": {"train": {"vocabSize": 400}}, "tokens": 20_000, "sequenceLength": 128,
        "globalBatchRows": 8, "microBatchRows": 8, "maxRepeats": 20, "checkpoint": {"everySteps": 60},
    }  # fmt: skip
    body = {
        "storage": {"uri": storage or "runs/small/data"},
        "corpus": {
            "uri": f"{corpus or 'corpus'}/*.jsonl", "documentsPerShard": 20,
            "split": {"tune": 0.4, "train": 0.4, "heldOut": 0.2},
        },
        "synthesis": {
            "synthesizer": {
                "tune": {
                    "init": TINY, "tokenizer": {"train": {"vocabSize": 400}}, "tokens": 160_000, "sequenceLength": 256,
                    "globalBatchRows": 2, "microBatchRows": 2,
                    "optimizer": {"learningRate": 0.005},
                }
            },
            "shots": 2, "sampling": {"maxTokens": 48, "contextWindow": 512}, "engine": {"name": "transformers"},
            "leaseSeconds": 5,
        },
        "training": training,
        "evaluation": {"maxDocuments": 6, "maxQuestions": 6},
    }  # fmt: skip
    file = folder / "small.yaml"
    wire = {
        "apiVersion": "instructpt.dev/v1alpha1", "kind": "InstructionPretraining", "metadata": {"name": "small"},
        "spec": body | spec,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(wire))
    return file


def environment(**extra: str) -> dict[str, str]:
    """Environment of a run: no colour, no credentials of the machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "INSTRUCTPT_"))}
    return {**kept, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **extra}


def instructpt(*args: str, cwd: Path, timeout: float = 500, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "instructpt", *args],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment(**env),
    )  # fmt: skip


def killing(folder: Path, at: str) -> dict[str, str]:
    """Environment in which every worker is killed once at each of these writes."""
    site, marks = folder / "site", folder / "marks"
    site.mkdir()
    marks.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(site), before] if before else [str(site)]),
        "KILL_AT": at,
        "KILL_MARKS": str(marks),
    }


def digests(folder: Path) -> dict[str, str]:
    """Step -> digest of its manifest, from a run folder."""
    return {p.stem: json.loads(p.read_text())["result"]["digest"] for p in (folder / "state").glob("*.json")}


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
