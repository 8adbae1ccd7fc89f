"""One process that takes the loss and its gradients once: ``train_loss.py {chunked,whole}``; prints a line of JSON.

The whole training step of one micro batch at a vocabulary of 32,768: forward, loss, backward. ``whole`` is the plain
cross-entropy over all logits; ``chunked`` is ours.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from typing import Any

import torch
from train_arms import row_of
from train_fixture import CONFIG

VOCABULARY, ROWS, LENGTH = 32_768, 8, 512


def main(kind: str) -> dict[str, Any]:
    """Figures of one step."""
    from instructpt.training import losses
    from instructpt.training.batches import make_batch
    from instructpt.training.loop import to_tensors
    from instructpt.training.model import PackedCausalLM, build_model

    torch.set_num_threads(2)
    model = PackedCausalLM(build_model(CONFIG, seed=1, vocab_size=VOCABULARY, special={}, length=LENGTH))
    if kind == "whole":
        losses.chunked = losses.whole
    batch = make_batch([row_of(torch.tensor([0, LENGTH]).numpy())] * ROWS, LENGTH, 0)
    tensors = dict(to_tensors(batch, torch.device("cpu")))
    draw = torch.Generator().manual_seed(2)
    tensors["input_ids"] = torch.randint(0, VOCABULARY, tensors["input_ids"].shape, generator=draw)
    tensors["labels"] = tensors["input_ids"].reshape(-1)[tensors["predict_from"] + 1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun = time.perf_counter()
    loss = model(**tensors) / tensors["labels"].numel()
    loss.backward()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {
        "loss": float(loss.detach()), "grad_norm": float(norm), "peak_bytes": peak, "bytes_before": before,
        "seconds": seconds, "tokens": batch.tokens,
    }  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1])))
