"""Arms of ``bench-prep`` that run in the project's environment; each in a process of its own, on one core.

One line of JSON in (:class:`Job`), one out. Packages are imported before the clock starts. Seconds are those of the
process on its core (``seconds`` of whole stages are of the clock on the wall, with ``cpu_seconds`` beside them).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import run_arm

Found = dict[str, Any]

ROW = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an arm does.

    Attributes:
        arm: Its name.
        folder: Of the text (``prep_text``).
        tokenizer: Folder of the tokenizer.
        shots: M; 0 where there are no chains.
        documents: Documents to pack, of the arms that pack lengths.
        megabytes: Text at most, of the arms that tokenize alone; 0 takes all.
    """

    arm: str
    folder: str
    tokenizer: str
    shots: int = 0
    documents: int = 0
    megabytes: float = 0


def lengths_of(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Lengths of documents in tokens: log-normal, median 330, mean about 490, none longer than a row."""
    drawn = np.random.default_rng(20261130).lognormal(5.8, 0.95, count)
    return np.clip(drawn.astype(np.int64) + 1, 8, ROW)


def texts_of(job: Job) -> list[str]:
    """The texts of the chains, up to ``megabytes``."""
    left = job.megabytes * 1e6 or float("inf")
    found = []
    with (Path(job.folder) / f"m{job.shots}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            found.append(json.loads(line)["text"])
            left -= len(line)
            if left <= 0:
                break
    return found


def run_ours(job: Job) -> Found:
    """The product: an augmented corpus on disk to token shards with their manifest on disk."""
    spec, context = _pack_job(job)
    from instructpt.training import prepare

    begun, used = time.perf_counter(), time.process_time()
    prepare.run(spec, context)
    result = prepare.finalize(spec, context)
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    output = Path(spec.output.uri)
    found = {
        "seconds": seconds,
        "cpu_seconds": used,
        "bytes": _size(job),
        "fill": result.scores["fill"],
        **result.counts,
    }
    shutil.rmtree(output.parent)
    return found


def run_load(job: Job) -> Found:
    """What ours spends before the first text: tokenizer read, and compared with the fast one."""
    import gigatoken  # noqa: F401  # imported before the clock starts
    import tokenizers  # noqa: F401

    from instructpt.training.encoder import TextEncoder
    from instructpt.training.encodings import choose

    begun, used = time.perf_counter(), time.process_time()
    choice = choose(TextEncoder(Path(job.tokenizer)))
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    return {"seconds": seconds, "cpu_seconds": used, "reason": choice.reason}


def run_check(job: Job) -> Found:
    """No speed: every text comes back from the shards, and its ids are those of the Hugging Face tokenizer."""
    from instructpt.training import prepare
    from instructpt.training.encoder import TextEncoder

    spec, context = _pack_job(job)
    prepare.run(spec, context)
    counts = prepare.finalize(spec, context).counts
    encoder = TextEncoder(Path(job.tokenizer))
    opening = 0 if encoder.bos is None else 1
    wanted: Counter[bytes] = Counter()
    whole: Counter[str] = Counter()
    tokens = long = 0
    for batch in _batches(texts_of(job)):
        for text, ids in zip(batch, encoder.encode(batch), strict=True):
            tokens += len(ids) + opening + 1
            if len(ids) + opening + 1 > ROW:
                long += 1
                continue
            wanted[ids.astype("<u4").tobytes()] += 1
            whole[text] += 1
    packed: Counter[bytes] = Counter()
    decoded: Counter[str] = Counter()
    for segment in _segments(Path(spec.output.uri)):
        ids = segment[opening:-1]
        key = ids.astype("<u4").tobytes()
        packed[key] += 1
        if key in wanted:
            decoded[encoder._backend.decode(ids.tolist(), skip_special_tokens=False)] += 1
    shutil.rmtree(Path(spec.output.uri).parent)
    return {
        "texts": whole.total(),
        "long_texts": long,
        "dropped_tokens": tokens - counts["tokens"],
        "unequal_texts": (wanted - packed).total(),
        "undecoded_texts": (whole - decoded).total(),
        "split_chains": counts["cut_items"] - long,
        "cut_documents": counts["cut_documents"],
    }


def _segments(output: Path) -> Iterator[Any]:
    from instructpt.corpus.manifest import load_manifest, load_objects
    from instructpt.storage import FilesystemStore
    from instructpt.training.tokenshards import TokenShard

    store = FilesystemStore(output)
    objects = load_objects(store)
    for entry in load_manifest(store).shards:
        shard = TokenShard(store.path(objects[entry.id]))
        for index in range(shard.num_rows):
            row = shard.row(index)
            yield from (row.tokens[a:b] for a, b in itertools.pairwise(row.segments.tolist()))


def _pack_job(job: Job) -> tuple[Any, Any]:
    import gigatoken  # noqa: F401  # imported before the clock starts
    import tokenizers  # noqa: F401

    from instructpt.api.base import StorageSpec
    from instructpt.api.runspec import PackRun, PreparedSource, ResolvedInput, RunSpec
    from instructpt.telemetry.context import WorkerContext

    output = Path(tempfile.mkdtemp(dir=job.folder)) / "out"
    pack = PackRun(
        source=PreparedSource(name="text", format="augmented", uri=f"{job.folder}/m{job.shots}"),
        tokenizer=ResolvedInput(uri=job.tokenizer),
        sequence_length=ROW,
        objective="Pretraining",
    )
    spec = RunSpec(
        verb="prepare",
        owner_kind="TrainingJob",
        owner_name="bench",
        step="pack",
        output=StorageSpec(uri=str(output)),
        code_version="bench",
        pack=pack,
    )
    scratch = output.parent / "scratch"
    scratch.mkdir()
    return spec, WorkerContext(worker_id="w", scratch=scratch)


def run_fast(job: Job) -> Found:
    """Limit: gigatoken alone over texts in memory; cold, on text it has not seen, and on the same text again."""
    from gigatoken import Tokenizer

    texts = texts_of(job)
    half = len(texts) // 2
    encode = Tokenizer(f"{job.tokenizer}/tokenizer.json").backend.encode
    found: Found = {}
    for name, part in (("", texts[:half]), ("unseen_", texts[half:]), ("repeated_", texts[half:])):
        begun = time.process_time()
        tokens = sum(len(encode(text)) for text in part)
        found[f"{name}seconds"] = time.process_time() - begun
        found[f"{name}bytes"] = _bytes(part)
        found[f"{name}tokens"] = tokens
    return found


def run_hf(job: Job) -> Found:
    """The Hugging Face tokenizer alone, over texts in memory."""
    from tokenizers import Tokenizer

    texts = texts_of(job)
    backend = Tokenizer.from_file(f"{job.tokenizer}/tokenizer.json")
    begun = time.process_time()
    tokens = 0
    for batch in _batches(texts):
        tokens += sum(len(e.ids) for e in backend.encode_batch_fast(batch, add_special_tokens=False))
    return {"seconds": time.process_time() - begun, "bytes": _bytes(texts), "tokens": tokens}


def run_copy(job: Job) -> Found:
    """Limit: the text copied once in memory."""
    data = np.fromfile(Path(job.folder) / f"m{job.shots}.jsonl", dtype=np.uint8)
    begun = time.process_time()
    copied = data.copy()
    return {"seconds": time.process_time() - begun, "bytes": len(copied)}


def run_pack(job: Job) -> Found:
    """Lengths to rows: where every document goes (assign), and that as shuffled rows (seconds)."""
    from instructpt.training import packing

    lengths = lengths_of(job.documents)
    packing.pack(lengths[:1000], ROW, seed="warm")
    begun = time.process_time()
    _, _, bins = packing._best_fit(lengths, ROW)
    assigned = time.process_time()
    packed = packing.pack(lengths, ROW, seed="bench")
    ended = time.process_time()
    assert packed.num_rows == bins
    assert int(packed.lengths.sum()) == int(lengths.sum())
    return {
        "assign_seconds": assigned - begun,
        "seconds": ended - assigned,
        "documents": len(lengths),
        "rows": bins,
        "fill": int(lengths.sum()) / (bins * ROW),
        "quartiles": np.quantile(lengths, (0.25, 0.5, 0.75)).tolist(),
        "mean": float(lengths.mean()),
        "longest": int(lengths.max()),
    }


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(itertools.islice(rest, 1000)):
        yield batch


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _size(job: Job) -> int:
    """UTF-8 bytes of the chains' texts."""
    return _bytes(texts_of(job))


ARMS: dict[str, Callable[[Job], Found]] = {
    "ours": run_ours,
    "load": run_load,
    "check": run_check,
    "fast": run_fast,
    "hf": run_hf,
    "copy": run_copy,
    "pack": run_pack,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(job: Job, peer: Path | None) -> Found | None:
    """One run of one arm, in a process of its own on one core. None of a peer that is absent or failed.

    Raises:
        SystemExit: An arm of ours failed; with what it said.
    """
    if job.arm in ARMS:
        command = [sys.executable, __file__]
    elif peer is None:
        return None
    else:
        command = [str(peer), str(Path(__file__).with_name("prep_peers.py"))]
    given = {**asdict(job), "row": ROW}
    if job.documents and job.arm not in ARMS:
        lengths = Path(job.folder) / f"lengths-{job.documents}.npy"
        np.save(lengths, lengths_of(job.documents))
        given["lengths"] = str(lengths)
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    core = {max(os.sched_getaffinity(0))}
    return run_arm(
        job.arm, command, given, required=job.arm in ARMS,
        env={**os.environ, **ONE_THREAD, **quiet}, preexec_fn=lambda: os.sched_setaffinity(0, core),
    )  # fmt: skip


if __name__ == "__main__":
    work = json.loads(sys.stdin.readline())
    work.pop("row")
    print(json.dumps(ARMS[work["arm"]](Job(**work))))
