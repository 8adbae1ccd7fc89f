"""The only home of DeepSpeed: process group, ZeRO, optimizer, and the whole state by name.

On a CPU nothing is compiled: DeepSpeed would build its shared-memory collective at first use, which needs a compiler;
unless it was built with the package, gloo takes its place, and AdamW is torch's own. Each rank gives its share of the
state as it lies in memory, with what it holds of which parameter, so that a checkpoint costs one copy and fits any
number of ranks and any ZeRO stage.

Source: Rajbhandari et al., ZeRO, arXiv 1910.02054; Loshchilov and Hutter, AdamW, arXiv 1711.05101.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from instructpt.api.v1alpha1.trainingjob import Optimizer
from instructpt.errors import EnvironmentNotReadyError
from instructpt.training.adafactor import Adafactor
from instructpt.training.parts import PARAM, Flat, Parts
from instructpt.training.pieces import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")
_SHM = "deepspeed_shm_comm"
_TURN_SECONDS = 20.0
"""Far below the time after which a collective gives up on a peer (10 minutes, DEEPSPEED_TIMEOUT)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun sets them; one process where it did not."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        rank, local_rank, world_size = (int(os.environ.get(n, d)) for n, d in zip(names, "001", strict=True))
        return cls(rank=rank, local_rank=local_rank, world_size=world_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What DeepSpeed is told.

    Attributes:
        micro_batches: Micro batches of a rank in a step.
        micro_batch_rows: Rows of a micro batch.
        precision: Of weights and activations; the optimizer always works in fp32.
    """

    zero_stage: int
    precision: Literal["bf16", "fp32"]
    gradient_clip: float
    optimizer: Optimizer
    micro_batches: int
    micro_batch_rows: int


def start(device: torch.device, ranks: Ranks) -> None:
    """Join the process group. A process joins once and stays in it.

    Raises:
        EnvironmentNotReadyError: DeepSpeed is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    named = {"RANK": ranks.rank, "LOCAL_RANK": ranks.local_rank, "WORLD_SIZE": ranks.world_size}
    os.environ.update({name: str(value) for name, value in named.items()})
    try:
        import deepspeed
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"training needs deepspeed, which cannot be imported ({error})", fix="pip install 'instructpt[training]'"
        ) from error
    # DeepSpeed 0.19 calls collectives of torch by their old names; nobody who reads a log can change that.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    for handler in logging.getLogger("DeepSpeed").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)  # stdout is data
    if device.type == "cpu" and not _prebuilt(_SHM):
        deepspeed.ops.__compatible_ops__[_SHM] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not torch_dist.is_initialized() and ranks.world_size == 1 and backend == "gloo":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = torch_dist.HashStore()  # type: ignore[attr-defined]
        torch_dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def on_all(value: int, device: torch.device, ranks: Ranks) -> list[int]:
    """The values of all ranks, by rank; the process group must be there."""
    values = torch.zeros(ranks.world_size, dtype=torch.int64, device=device)
    values[ranks.rank] = value
    if ranks.world_size > 1:
        torch_dist.all_reduce(values)
    return [int(v) for v in values.tolist()]


def _prebuilt(op: str) -> bool:
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(op, False))


class Engine:
    """A model, its optimizer and their place in the process group. Every method is called by all ranks together.

    Args:
        module: In fp32, on the CPU; its forward gives the sum of the losses of a micro batch.
        settings: Sizes and rates.
        ranks: This process.
    """

    def __init__(self, module: nn.Module, settings: EngineSettings, ranks: Ranks) -> None:
        import deepspeed

        self._ranks = ranks
        self._stage = settings.zero_stage
        self._clip = settings.gradient_clip
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": settings.micro_batch_rows,
            "gradient_accumulation_steps": settings.micro_batches,
            "gradient_clipping": settings.gradient_clip,
            "zero_optimization": {"stage": settings.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 40,
        }
        if settings.precision == "bf16":
            config["bf16"] = {"enabled": True}
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=_optimizer(module, settings.optimizer), config=config, dist_init_required=False
        )
        self._names = {name: p for name, p in self._engine.module.named_parameters() if p.requires_grad}
        self._make_moments(0)

    def describe(self) -> str:
        """What DeepSpeed and the process group say that they do, for the log."""
        stage, size = self._engine.zero_optimization_stage(), torch_dist.get_world_size()
        return f"ZeRO stage {stage}, world size {size}, backend {torch_dist.get_backend()}"

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return torch.device(self._engine.device)

    def accumulate(self, batch: Mapping[str, Tensor], divisor: int) -> Tensor:
        """Forward and backward of one micro batch.

        Args:
            batch: Arguments of the module's forward.
            divisor: Targets of the whole step, over all ranks and micro batches.

        Returns:
            The sum of its losses, detached.
        """
        loss = self._engine(**batch)
        # DeepSpeed averages over ranks; times their number that is a sum, which the step's targets divide.
        self._engine.backward(loss * (self._ranks.world_size / max(1, divisor)), scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        detached: Tensor = loss.detach()
        return detached

    def evaluate(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward alone, without gradients and dropout: the sum of the losses of a micro batch."""
        self._engine.eval()
        try:
            with torch.no_grad():
                loss: Tensor = self._engine(**batch)
        finally:
            self._engine.train()
        return loss.detach()

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients of the step; gives their norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Any = None
        if self._stage == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._names.values() if p.grad is not None])
        self._engine.step()
        found = self._engine.get_global_grad_norm()
        return float(found if found is not None else norm)

    def all_sum(self, values: Tensor) -> Tensor:
        """Sum over ranks."""
        if self._ranks.world_size > 1:
            torch_dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list[Any]:
        """A small value of every rank, by rank."""
        if self._ranks.world_size == 1:
            return [value]
        found: list[Any] = [None] * self._ranks.world_size
        torch_dist.all_gather_object(found, value)
        return found

    def wait_for_first(self, ready: Callable[[float], bool]) -> None:
        """Wait, all ranks, until rank 0 is ready: storage may take far longer than a collective waits for a peer.

        The ranks meet again and again meanwhile, so that one that died is noticed as soon as in a step.

        Args:
            ready: Asked on rank 0: waits for at most so many seconds and says whether all is done.
        """
        while True:
            done = ready(_TURN_SECONDS) if self._ranks.rank == 0 else False
            if self.all_sum(torch.tensor([float(done)], device=self.device)).item() > 0:
                return

    # ------------------------------------------------------------- the state

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Every parameter on the CPU of rank 0, by name; nothing on the other ranks, which help to gather them."""
        out = {}
        for name, p in self._names.items():
            full = self._full(p)
            if self._ranks.rank == 0:
                out[name] = full.to("cpu", dtype, copy=True).contiguous()
        return out

    def flats(self) -> list[Flat]:
        """This rank's share of the state as it lies in memory: nothing is copied.

        Together the ranks give each element once; where all hold everything, each gives some of the parameters.
        """
        held = self._held()
        if self._plain():
            return held[self._ranks.rank :: self._ranks.world_size]
        return held if self._ranks.rank == 0 else [flat for flat in held if not flat.is_copy]

    def load(self, parts: Parts, *, steps: int) -> None:
        """Continue from a checkpoint that was written after ``steps`` steps, by any number of ranks and any stage.

        The module must have had these weights when the engine was made: this sets the optimizer's exact copies.

        Raises:
            TrainingError: The parts do not hold all that this rank needs.
        """
        self._make_moments(steps)
        with torch.no_grad():
            for flat in self._held():
                for key, tensor in flat.tensors.items():
                    for piece in flat.pieces:
                        if piece.size:
                            value = parts.read(key, piece.name, piece.start, piece.size)
                            tensor[piece.offset : piece.offset + piece.size].copy_(value)

    def _held(self) -> list[Flat]:
        """All of the state that this rank holds."""
        inner, out = self._inner(), []
        for flat, pieces in zip(self._flat(), self._pieces(), strict=True):
            tensors = {PARAM: flat.detach().view(-1)}
            if not isinstance(inner, Adafactor):
                tensors |= {key: inner.state[flat][key].view(-1) for key in MOMENTS}
            out.append(Flat(tensors=tensors, pieces=tuple(pieces)))
        if isinstance(inner, Adafactor):
            out += [
                Flat(tensors={PARAM: tensor.view(-1)}, pieces=pieces, is_copy=everywhere)
                for tensor, pieces, everywhere in inner.held()
            ]
        return out

    def _pieces(self) -> list[list[Piece]]:
        """What each flat tensor of this rank holds."""
        names = {id(p): name for name, p in self._names.items()}
        if self._plain():
            return [[_piece(names[id(p)], p, 0, 0, p.numel())] for p in self._flat()]
        zero = self._optimizer
        if self._stage == 3:
            return [[self._cut_evenly(names[id(p)], p) for p in group] for group in zero.fp16_groups]
        return [[_mapped(names[id(p)], p) for p in group] for group in zero.bit16_groups]

    def _cut_evenly(self, name: str, p: nn.Parameter) -> Piece:
        """Stage 3 cuts each parameter into equal parts, the last one filled up."""
        _, offset, size = self._optimizer.grad_position[self._optimizer.get_param_id(p)]
        start = self._ranks.rank * size
        return _piece(name, p, start, offset, max(0, min(size, int(cast("Any", p).ds_numel) - start)))

    def _make_moments(self, steps: int) -> None:
        """Zero moments now, not at the first step: there DeepSpeed links those of the first parameter group alone."""
        inner = self._inner()
        if isinstance(inner, Adafactor):
            pieces = {id(flat): held for flat, held in zip(self._flat(), self._pieces(), strict=True)}
            shapes = {name: _piece(name, p, 0, 0, 0).shape for name, p in self._names.items()}
            total = None if self._plain() or self._ranks.world_size == 1 else self.all_sum
            inner.place(pieces, shapes, total, self.device, steps=steps)
            return
        for flat in self._flat():
            inner.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                **{key: torch.zeros_like(flat) for key in MOMENTS},
            }
        link = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            self._optimizer._hp_optimizer_states_linked = False
            link()

    def _full(self, p: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        found: Tensor = p if self._plain() else safe_get_full_fp32_param(p)
        return found.detach()

    def _plain(self) -> bool:
        """Whether torch's optimizer holds the parameters themselves (no ZeRO, fp32)."""
        return self._optimizer is self._inner()

    def _inner(self) -> Any:
        inner = getattr(self._optimizer, "optimizer", None)
        return self._optimizer if inner is None else inner

    def _flat(self) -> list[Tensor]:
        """The tensors that torch's optimizer keeps moments for."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            found = getattr(self._optimizer, name, None)
            if found is not None:
                return list(found)
        return [p for group in self._inner().param_groups for p in group["params"]]


def _piece(name: str, p: Tensor, start: int, offset: int, size: int) -> Piece:
    shape = tuple(int(n) for n in getattr(p, "ds_shape", p.shape))
    return Piece(name=name, shape=shape, start=int(start), offset=int(offset), size=int(size))


def _mapped(name: str, p: nn.Parameter) -> Piece:
    """The part of a parameter that stages 1 and 2 give to this rank; of size 0 where they give none."""
    mapping: Any = getattr(p, "_hp_mapping", None)
    if mapping is None:
        return _piece(name, p, 0, 0, 0)
    whole, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
    return _piece(name, p, whole.start, flat.start, whole.numel)


def _optimizer(module: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The spec's optimizer; norms and biases, which have one dimension, do not decay."""
    named = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in named if p.dim() >= 2], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if optimizer.name == "adafactor":
        return Adafactor(groups, optimizer.learning_rate)
    return torch.optim.AdamW(
        groups,
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        fused=True,
    )
