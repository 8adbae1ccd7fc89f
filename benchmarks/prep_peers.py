"""Peers of ``bench-prep``, in an environment of their own; each in a process of its own, on one core.

One line of JSON in (a ``Job`` of ``prep_arms``, with ``row`` and ``lengths``), one out.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def run_hf_trl(job: dict[str, Any]) -> Found:
    """The usual way: datasets reads, the tokenizer of transformers encodes, trl packs, datasets writes."""
    from datasets import Dataset, disable_caching, disable_progress_bars
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    disable_caching()
    disable_progress_bars()
    source = Path(job["folder"]) / f"m{job['shots']}.jsonl"
    with tempfile.TemporaryDirectory(dir=job["folder"]) as cache:
        begun, used = time.perf_counter(), time.process_time()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            found = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
            return {"input_ids": [[bos, *ids, eos] for ids in found]}

        texts = Dataset.from_json(str(source), cache_dir=cache)
        ids = texts.map(encode, batched=True, remove_columns=["text"])
        encoded = time.perf_counter()
        packed = pack_dataset(ids, job["row"], "bfd")
        packing = time.perf_counter()
        packed.save_to_disk(f"{cache}/packed")
        ended, used = time.perf_counter(), time.process_time() - used
        before, after = (sum(map(len, part["input_ids"])) for part in (ids, packed))
        return {
            "seconds": ended - begun,
            "cpu_seconds": used,
            "tokenize_seconds": encoded - begun,
            "pack_seconds": packing - encoded,
            "rows": len(packed),
            "tokens": before,
            "dropped_tokens": before - after,
            "fill": after / (len(packed) * job["row"]),
        }


def run_trl(job: dict[str, Any]) -> Found:
    """Trl's packer on documents of one byte a token, so that moving them costs it as little as can be."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset, disable_caching, disable_progress_bars
    from trl import pack_dataset
    from trl.data_utils import _pack_bfd

    disable_caching()
    disable_progress_bars()
    lengths = np.load(job["lengths"])
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    ids = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(int(offsets[-1]), dtype=np.int8)))
    table = pa.table({"input_ids": ids})
    begun = time.process_time()
    whole = _pack_bfd(table, job["row"])
    middle = time.process_time()
    packed = pack_dataset(Dataset(pa.table(table)), job["row"], "bfd")
    ended = time.process_time()
    return {
        "one_batch_seconds": middle - begun,
        "seconds": ended - middle,
        "documents": len(lengths),
        "one_batch_fill": int(lengths.sum()) / (len(whole) * job["row"]),
        "fill": int(lengths.sum()) / (len(packed) * job["row"]),
    }


def run_seqpacker(job: dict[str, Any]) -> Found:
    """Seqpacker's fastest form: lengths to document numbers by bin and where each bin begins, best-fit decreasing."""
    import numpy as np
    import seqpacker

    lengths = np.load(job["lengths"])
    packer = seqpacker.Packer(capacity=job["row"], strategy="obfd")
    packer.pack_flat(lengths[:1000])
    begun = time.process_time()
    _, offsets = packer.pack_flat(lengths)
    ended = time.process_time()
    bins = packer.pack(lengths).num_bins
    assert bins - 1 <= len(offsets) <= bins + 1
    return {
        "seconds": ended - begun,
        "documents": len(lengths),
        "rows": bins,
        "fill": int(lengths.sum()) / (bins * job["row"]),
    }


PEERS = {"hf_trl": run_hf_trl, "trl": run_trl, "seqpacker": run_seqpacker}

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    work: dict[str, Any] = json.loads(sys.stdin.readline())
    print(json.dumps(PEERS[work["arm"]](work)))
