"""The trained model as a Hugging Face folder: weights, config, tokenizer, metrics and a card with its lineage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from instructpt.api.runspec import TrainRun
from instructpt.training.files import copy_tokenizer
from instructpt.training.mixture import SourceReceipt

CARD = "README.md"


def write_model(model: nn.Module, weights: Mapping[str, Tensor], tokenizer: Path, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json``, ``model.safetensors`` and the tokenizer's files.

    Equal weights give equal bytes. Large models are split as transformers does it, with an index.

    Args:
        model: Gives architecture and config; its own weights are not read.
        weights: By name, in the type they are to be stored in.
        tokenizer: Folder with the tokenizer's files.
        folder: Made if it is not there.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would be written into the worker's log
    folder.mkdir(parents=True, exist_ok=True)
    any_model = cast("Any", model)
    buffers = {n: b.detach().cpu() for n, b in model.named_buffers() if n in set(_persistent(model))}
    any_model.config.use_cache = True
    any_model.config.dtype = next(iter(weights.values())).dtype
    any_model.save_pretrained(str(folder), state_dict={**buffers, **weights}, safe_serialization=True)
    copy_tokenizer(tokenizer, folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600; others read the folder, too


def _persistent(model: nn.Module) -> list[str]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in parameters]


def model_card(
    section: TrainRun, receipts: list[SourceReceipt], inputs: Mapping[str, str], scores: Mapping[str, float], steps: int
) -> str:
    """The model's card: what it was made of, without a place or a time."""
    rows = [
        f"| {r.name} | {r.tokens:,} | {r.rows:,} | {r.unique_documents:,} | {r.passes:.2f} "
        f"| `{inputs[f'source:{r.name}']}` |"
        for r in receipts
    ]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [instructpt, instruction-pre-training]",
        "---",
        f"# Trained by instructpt: {section.objective}",
        "",
        f"{sum(r.tokens for r in receipts):,} tokens in {steps:,} steps of {section.global_batch_rows} rows of "
        f"{section.sequence_length} tokens.",
        f"Loss: {scores['first_loss']:.4f} at the first step, {scores['final_loss']:.4f} over the last ten.",
        "",
        "| source | tokens | rows | unique documents | passes | digest |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *rows,
        "",
        f"- tokenizer: `{inputs['tokenizer']}`",
        f"- weights from: {'`' + inputs['init'] + '`' if 'init' in inputs else 'scratch'}",
        f"- seed: {section.seed}",
        "",
        "`manifest.json` beside this file has the full lineage and the sha256 of every file.",
        "",
    ]
    return "\n".join(lines)
