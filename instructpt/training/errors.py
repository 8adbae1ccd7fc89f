"""Errors that only training raises."""

from __future__ import annotations

from instructpt.errors import InstructPTError, TrainingError


class Preempted(InstructPTError):  # noqa: N818  # not a fault: the worker was asked to leave and kept its state
    """SIGTERM came, a verified checkpoint was written; the same command goes on from it."""


class PeerLostError(TrainingError):
    """Another rank is gone or does not answer: the cause stands with that rank, on this node or another."""
