"""Peak memory and speed of inspecting and reading a generated corpus.

Writes seeded text of ``--bytes`` in each format into a temporary folder, inspects it in one process, reads it back in
another, and takes each one's peak resident memory (``VmHWM``) from the kernel. Ends with 1 where a peak is above
``--limit-mb``.

    python benchmarks/read_corpus.py --bytes 2G --output benchmarks/results/corpus.json
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from environment import command_line, commit, ended, environment

FORMATS = ("jsonl", "jsonl.zst", "parquet")
SEED = 20261121
_SENTENCES = 100_000


def texts(size: int) -> Iterator[str]:
    """Seeded documents of 100 to 8,000 characters whose UTF-8 bytes add up to at least ``size``."""
    source = random.Random(SEED)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    syllables = ["".join(source.choices(letters, weights=range(26, 0, -1), k=source.randint(1, 3))) for _ in range(400)]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(30_000)]
    words[::500] = ["naïve", "café", "über", "señor"] * (len(words[::500]) // 4)
    ranks = [1.0 / (rank + 1) for rank in range(len(words))]
    cumulative, total = [], 0.0
    for rank in ranks:
        total += rank
        cumulative.append(total)
    sentences = [
        " ".join(source.choices(words, cum_weights=cumulative, k=source.randint(4, 24))).capitalize() + "."
        for _ in range(_SENTENCES)
    ]
    written = number = 0
    while written < size:
        count = min(80, max(1, int(source.lognormvariate(2.4, 0.8))))
        text = f"Document {number}. " + " ".join(source.choices(sentences, k=count))
        written += len(text.encode())
        number += 1
        yield text


def write_corpus(folder: Path, format_: str, size: int) -> Path:
    """The corpus as one file."""
    path = folder / f"corpus.{format_}"
    if format_ == "parquet":
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for first, batch in _batches(texts(size), 1000):
                columns = [pa.array(range(first, first + len(batch))), pa.array(batch, pa.string())]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        return path
    with path.open("wb") as raw:
        out: Any = zstandard.ZstdCompressor(level=3).stream_writer(raw) if format_ == "jsonl.zst" else raw
        for number, text in enumerate(texts(size)):
            out.write(orjson.dumps({"id": number, "text": text}, option=orjson.OPT_APPEND_NEWLINE))
        if out is not raw:
            out.flush(zstandard.FLUSH_FRAME)
    return path


def _batches(items: Iterator[str], count: int) -> Iterator[tuple[int, list[str]]]:
    first, batch = 0, list[str]()
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield first, batch
            first, batch = first + count, []
    if batch:
        yield first, batch


def inspect_corpus(source: str, output: str) -> dict[str, int]:
    """Run and finalize the inspection; its counts."""
    from importlib.metadata import version

    from instructpt.api.base import StorageSpec
    from instructpt.api.runspec import InspectRun, RunSpec
    from instructpt.api.v1alpha1.corpus import CorpusSource, Split
    from instructpt.corpus import inspect
    from instructpt.telemetry.context import WorkerContext

    spec = RunSpec(
        verb="inspect",
        owner_kind="Corpus",
        owner_name="benchmark",
        step="inspect",
        output=StorageSpec(uri=output),
        code_version=version("instructpt"),
        inspect=InspectRun(
            source=CorpusSource(uri=source),
            split=Split(tune=0.2, train=0.7, held_out=0.1),
            documents_per_shard=2000,
        ),
    )
    context = WorkerContext(worker_id="benchmark", scratch=Path(output) / "scratch")
    inspect.run(spec, context)
    return dict(inspect.finalize(spec, context).counts)


def read_corpus(source: str, output: str) -> dict[str, int]:
    """Read every document of the inspected corpus."""
    from instructpt.api.runspec import ResolvedInput
    from instructpt.corpus.shards import iter_corpus

    documents = size = 0
    for document in iter_corpus(ResolvedInput(uri=output)):
        documents += 1
        size += len(document.text)
    return {"documents": documents, "characters": size}


STEPS: dict[str, Callable[[str, str], dict[str, int]]] = {"inspect": inspect_corpus, "read": read_corpus}


def child(step: str, source: str, output: str) -> None:
    """Body of the measured process: one line of JSON."""
    started = time.perf_counter()
    counts = STEPS[step](source, output)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]  # Linux always has it
    print(json.dumps({"seconds": seconds, "peak_kb": peak, "counts": counts}))


def measure(step: str, source: Path, output: Path) -> dict[str, Any]:
    """One step in a process of its own."""
    command = [sys.executable, __file__, "--child", step, str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{step} of {source.name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def benchmark(format_: str, size: int, folder: Path) -> dict[str, Any]:
    """Write, inspect and read one format; removes what it wrote."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = write_corpus(Path(name), format_, size)
        figures: dict[str, Any] = {"file_bytes": path.stat().st_size}
        for step in STEPS:
            found = measure(step, path, Path(name) / "out")
            if step == "inspect":
                figures["documents"] = found["counts"]["documents"]
                figures["text_bytes"] = found["counts"]["bytes"]
                figures["shards"] = found["counts"]["shards"]
            elif found["counts"]["documents"] != figures["documents"]:
                raise SystemExit(f"{format_}: read {found['counts']['documents']} of {figures['documents']} documents")
            figures[f"{step}_seconds"] = round(found["seconds"], 2)
            figures[f"{step}_text_mb_per_s"] = round(figures["text_bytes"] / 1e6 / found["seconds"], 1)
            figures[f"{step}_peak_mb"] = round(found["peak_kb"] * 1024 / 1e6, 1)
        return figures


def parse_size(text: str) -> int:
    """``2G``, ``30M`` or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 30M or 2G")
    return int(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]])


def main(arguments: list[str]) -> int:
    """Run the benchmark; 1 where a peak is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument(
        "--bytes", type=parse_size, default=parse_size("2G"), help="size of the text, such as 30M or 2G"
    )
    parser.add_argument("--formats", default=",".join(FORMATS), help="some of " + ", ".join(FORMATS))
    parser.add_argument("--limit-mb", type=float, default=500.0, help="highest peak of resident memory")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--folder", type=Path, help="where the corpora are written (default: the system's)")
    options = parser.parse_args(arguments)
    around = environment(("instructpt", "orjson", "pyarrow", "zstandard"), seed=SEED)
    results: dict[str, Any] = {"command": command_line(), "commit": commit(), "formats": {}}
    for format_ in options.formats.split(","):
        figures = results["formats"][format_] = benchmark(format_, options.bytes, options.folder)
        print(format_, json.dumps(figures), flush=True)
    peak = max(figures[f"{step}_peak_mb"] for figures in results["formats"].values() for step in STEPS)
    results |= {"peak_mb": peak, "limit_mb": options.limit_mb, "within_limit": peak <= options.limit_mb}
    results["environment"] = ended(around)
    text = json.dumps(results, indent=2, sort_keys=True) + "\n"
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    return 0 if results["within_limit"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        raise SystemExit(main(sys.argv[1:]))
