"""Launchers: what runs a training of several pods. One adapter interface; the PyTorchJob first."""

from __future__ import annotations

from collections.abc import Mapping

from instructpt.cluster.launchers.base import Launcher
from instructpt.cluster.launchers.pytorchjob import PYTORCHJOB

LAUNCHERS: Mapping[str, Launcher] = {PYTORCHJOB.name: PYTORCHJOB}
"""By name, as in the chart's value and in :class:`instructpt.cluster.context.RenderContext`."""

__all__ = ["LAUNCHERS", "PYTORCHJOB"]
