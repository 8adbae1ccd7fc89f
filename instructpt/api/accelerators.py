"""What a GPU has: memory, and the dense bf16 rate of its data sheet. For plans; a worker asks the device itself."""

from __future__ import annotations

from dataclasses import dataclass

from instructpt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One kind of GPU.

    Attributes:
        name: As in ``--gpu``.
        memory_bytes: As its maker states it, in units of 10^9.
        flops: Dense bf16 peak, in FLOP/s.
    """

    name: str
    memory_bytes: int
    flops: float


_GB = 10**9
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(name="b200", memory_bytes=180 * _GB, flops=2250e12),
    Accelerator(name="h200", memory_bytes=141 * _GB, flops=989e12),
    Accelerator(name="h100-80gb", memory_bytes=80 * _GB, flops=989e12),
    Accelerator(name="a100-80gb", memory_bytes=80 * _GB, flops=312e12),
    Accelerator(name="a100-40gb", memory_bytes=40 * _GB, flops=312e12),
    Accelerator(name="l40s", memory_bytes=48 * _GB, flops=362e12),
    Accelerator(name="l4", memory_bytes=24 * _GB, flops=121e12),
    Accelerator(name="a10", memory_bytes=24 * _GB, flops=125e12),
)
DEFAULT_ACCELERATOR = "a100-80gb"
PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Label by which nodes name their GPU (NVIDIA's feature discovery); a nodeSelector on it says which one is wanted."""


def accelerator(name: str) -> Accelerator:
    """The GPU of that name.

    Raises:
        ConfigError: It is not in the table.
    """
    found = next((a for a in ACCELERATORS if a.name == name.lower()), None)
    if found is None:
        known = ", ".join(a.name for a in ACCELERATORS)
        raise ConfigError("is not a GPU that is known here", field="--gpu", value=name, fix=f"use one of {known}")
    return found


def from_product(product: str) -> Accelerator | None:
    """The GPU that a node's label names, such as ``NVIDIA-A100-SXM4-80GB``; None for one that is not in the table."""
    text = product.lower()
    return next((a for a in ACCELERATORS if all(part in text for part in a.name.split("-"))), None)
