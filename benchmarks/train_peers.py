"""One rank of a peer, under torchrun, in the peer's environment: ``train_peers.py JOB``; rank 0 prints a line of JSON.

Both train the model of :mod:`train_fixture` on full rows of random tokens, without masks and without checkpoints, in
fp32, with AdamW and the same batch as ours. ``hf-trainer`` is transformers' Trainer with data parallel ranks.
``litgpt`` is its function ``fit``, unmodified, with a Fabric of data parallel ranks: its own command shards by FSDP,
which needs GPUs, and compiles the model first.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from train_clock import Clock
from train_fixture import CLIP, CONFIG, RATE, SEED, VOCABULARY, Job


def tokens(job: Job, more: int = 0) -> torch.Tensor:
    """Shape (rows of the run, length): random tokens in memory."""
    draw = torch.Generator().manual_seed(SEED)
    return torch.randint(0, VOCABULARY, ((job.total + 1) * job.rows, job.length + more), generator=draw)


def run_trainer(job: Job, clock: Clock) -> None:
    """The Trainer of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    rows = tokens(job)

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": rows[index], "labels": rows[index]}

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    ranks = int(os.environ["WORLD_SIZE"])
    fields = {k: v for k, v in CONFIG.items() if k != "model_type"}
    config = AutoConfig.for_model(CONFIG["model_type"], **fields, vocab_size=VOCABULARY)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    arguments = TrainingArguments(
        output_dir=job.output, max_steps=job.total, per_device_train_batch_size=job.micro_rows,
        gradient_accumulation_steps=job.rows // ranks // job.micro_rows, learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.1, adam_beta2=0.95, max_grad_norm=CLIP, use_cpu=True, ddp_backend="gloo", save_strategy="no",
        report_to=[], logging_steps=1, disable_tqdm=True, seed=SEED,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Told()]).train()


def run_litgpt(job: Job, clock: Clock) -> None:
    """The function ``fit`` of litgpt."""
    import lightning
    from lightning.fabric.strategies import DDPStrategy
    from litgpt import GPT, Config
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.pretrain import fit

    ranks = int(os.environ["WORLD_SIZE"])
    each = job.rows // ranks // job.micro_rows
    rows = tokens(job, more=1)[int(os.environ["RANK"]) :: ranks]

    class Batches:
        """Micro batches of this rank; asking for the first one of a step means that the step before has ended."""

        def __len__(self) -> int:
            return len(rows) // job.micro_rows

        def __iter__(self) -> Iterator[torch.Tensor]:
            for number in range(len(self)):
                if number and number % each == 0:
                    clock.tick()
                yield rows[number * job.micro_rows : (number + 1) * job.micro_rows]

    fabric = lightning.Fabric(
        accelerator="cpu", devices=ranks, strategy=DDPStrategy(process_group_backend="gloo"), precision="32-true"
    )
    fabric.launch()
    config = Config(
        name="bench", block_size=job.length, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY,
        n_layer=CONFIG["num_hidden_layers"], n_head=CONFIG["num_attention_heads"], n_embd=CONFIG["hidden_size"],
        n_query_groups=CONFIG["num_key_value_heads"], intermediate_size=CONFIG["intermediate_size"],
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    model = GPT(config)
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = job.length
    module = fabric.setup(model)
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    )
    train = TrainArgs(
        save_interval=None, log_interval=1, global_batch_size=job.rows, micro_batch_size=job.micro_rows,
        max_tokens=(job.total + 1) * job.rows * job.length, max_norm=CLIP, min_lr=RATE, lr_warmup_steps=0,
        tie_embeddings=True,
    )  # fmt: skip
    quiet = EvalArgs(interval=1 << 30, max_iters=1, initial_validation=False, final_validation=False)
    state = {"model": module, "optimizer": optimizer, "train_dataloader": Batches(), "iter_num": 0, "step_count": 0}
    fit(
        fabric=fabric, devices=ranks, state=state, train_dataloader=state["train_dataloader"],
        val_dataloader=[rows[: job.micro_rows]], out_dir=Path(job.output), tokenizer_dir=None, train=train, eval=quiet,
    )  # fmt: skip


PEERS = {"hf-trainer": run_trainer, "litgpt": run_litgpt}


def main() -> None:
    """Run the peer."""
    warnings.simplefilter("ignore")
    job = Job.from_json(sys.argv[1])
    clock = Clock(job)
    torch.set_num_threads(1)
    said, sys.stdout = sys.stdout, sys.stderr  # a peer's talk is no result
    PEERS[job.arm](job, clock)
    if os.environ["RANK"] == "0":
        figures = {"seconds": clock.seconds, "start_seconds": clock.start_seconds, "steps": job.steps}
        print(json.dumps({**figures, "tokens": job.steps * job.rows * job.length}), file=said, flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)
