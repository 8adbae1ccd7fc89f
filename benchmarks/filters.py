"""What filters find, and what comparing a million documents takes.

Recall: pairs of generated documents, one with words replaced, through the inspection with ``deduplicate: minhash``.
Comparison: the end of an inspection over ``--documents`` rows in a process of its own, a tenth of them duplicates; its
peak resident memory (``VmHWM``) over that of the same process at 1,000 rows. Groundedness: mined pairs of Python's
documentation, each beside its own document and beside another one.

    python benchmarks/filters.py --output benchmarks/results/filters.json
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import command_line, commit, ended, environment

SEED = 20261130
BOUNDS = (0.3, 0.5, 0.8)
SIMILARITY = 0.8


def recall(pairs: int) -> list[dict[str, Any]]:
    """Share of pairs that are found, by the number of words that were replaced in one of 300."""
    from instructpt.corpus.screening import SHINGLE_WORDS
    from instructpt.corpus.text.minhash import band_hashes, banding, jaccard, shingles

    rng, cut = random.Random(SEED), banding(SIMILARITY)
    vocabulary = [f"word{i}" for i in range(20_000)]
    found = []
    for replaced in (2, 4, 6, 8, 12, 20, 40):
        alike, hits = 0.0, 0
        for _ in range(pairs):
            words = rng.choices(vocabulary, k=300)
            other = list(words)
            for place in rng.sample(range(300), replaced):
                other[place] = f"other{rng.randrange(10**9)}"
            texts = " ".join(words), " ".join(other)
            alike += jaccard(*(shingles(text, SHINGLE_WORDS) for text in texts)) / pairs
            first, second = (band_hashes(text, SHINGLE_WORDS, cut) for text in texts)
            hits += bool(np.any(first == second))
        found.append({
            "replaced_words": replaced, "similarity": round(alike, 3), "found": round(hits / pairs, 3),
            "predicted": round(cut.probability(alike), 3),
        })  # fmt: skip
    return found


def compare(documents: int) -> dict[str, Any]:
    """The end of an inspection over generated rows, in this process."""
    from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
    from instructpt.corpus.filtered import filter_corpus
    from instructpt.corpus.manifest import ShardEntry
    from instructpt.corpus.screening import row_type

    filters = CorpusFilters(deduplicate="minhash", similarity=SIMILARITY)
    rng, row = np.random.default_rng(SEED), row_type(filters)
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "rows", 10_000
        shards = []
        with path.open("wb") as file:
            for start in range(0, documents, size):
                block = np.zeros(min(size, documents - start), dtype=row)
                block["split"], block["bytes"], block["words"] = 1, 2000, 350
                block["hashes"] = rng.integers(1, 2**63, block["hashes"].shape, dtype=np.uint64)
                tenth = len(block) // 10
                block["hashes"][:tenth, 0 if start % (2 * size) else 3] = start // (4 * size) + 1
                file.write(block.tobytes())
                shards.append(ShardEntry(id="", counts={"documents": len(block)}))
        started = time.perf_counter()
        made = filter_corpus(shards, [lambda: path.open("rb")], filters, estimated=True, scratch=Path(folder))
        seconds = time.perf_counter() - started
        rows = path.stat().st_size
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]  # Linux always has it
    left_out = sum(entry.counts["filtered"] for entry in made.entries)
    return {"seconds": round(seconds, 2), "peak_kb": peak, "left_out": left_out, "row_bytes": rows // documents}


def comparison(documents: int) -> dict[str, Any]:
    """Memory and time of comparing so many documents."""
    figures = {}
    for number in (1000, documents):
        command = [sys.executable, __file__, "--child", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[number] = json.loads(done.stdout.splitlines()[-1])
    found: dict[str, Any] = figures[documents]
    peak, base = found.pop("peak_kb"), figures[1000]["peak_kb"]
    return {
        "documents": documents,
        **found,
        "peak_mb": round(peak / 1e3, 1),
        "above_base_mb": round((peak - base) / 1e3, 1),
    }


def groundedness() -> dict[str, Any]:
    """Share of the judged free answers that a bound drops, beside their own document and beside another one."""
    from instructpt.corpus import builtin
    from instructpt.corpus.text.words import words_of
    from instructpt.synthesis import mined
    from instructpt.synthesis.groundedness import content_words, support

    texts = [document.text for document in builtin.documents()][:2000]
    found = {name: [] for name in ("own", "other")}  # type: dict[str, list[float]]
    for index, text in enumerate(texts):
        for pair in mined.mine(text, SEED):
            if pair.kind == "free" and content_words(pair.answer):
                found["own"].append(support(pair.answer, frozenset(words_of(text))))
                other = texts[(index + len(texts) // 2) % len(texts)]
                found["other"].append(support(pair.answer, frozenset(words_of(other))))
    return {
        "answers": len(found["own"]),
        "dropped": {
            name: {str(b): round(sum(value < b for value in values) / len(values), 3) for b in BOUNDS}
            for name, values in found.items()
        },
    }


def speed() -> dict[str, float]:
    """Documents a second of each measure, over Python's documentation, in one process."""
    from instructpt.corpus import builtin
    from instructpt.corpus.text.language import language_of
    from instructpt.corpus.text.minhash import band_hashes, banding
    from instructpt.corpus.text.repetition import repetition

    texts = [document.text for document in builtin.documents()][:1000]
    found = {}
    measures = {
        "minhash": lambda text: band_hashes(text, 5, banding(SIMILARITY)),
        "repetition": repetition,
        "language": language_of,
    }
    for name, measure in measures.items():
        started = time.perf_counter()
        for text in texts:
            measure(text)
        found[name] = round(len(texts) / (time.perf_counter() - started))
    return {**found, "mean_characters": round(sum(map(len, texts)) / len(texts))}


def main(arguments: list[str]) -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--documents", type=int, default=1_000_000, help="rows of the comparison")
    parser.add_argument("--pairs", type=int, default=500, help="pairs a step of the recall")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    around = environment(("instructpt", "numpy"), seed=SEED)
    results: dict[str, Any] = {
        "command": command_line(),
        "commit": commit(),
        "recall_at_0.8": recall(options.pairs),
        "comparison": comparison(options.documents),
        "groundedness": groundedness(),
        "documents_per_second": speed(),
    }
    results["environment"] = ended(around)
    text = json.dumps(results, indent=2, sort_keys=True) + "\n"
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(compare(int(sys.argv[2]))))
    else:
        raise SystemExit(main(sys.argv[1:]))
