"""Figures of several workers as one answer."""

from __future__ import annotations

from typing import Any


def merge_progress(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """One answer for all replicas: totals are the ledger's (the largest seen), rates and counts add up."""
    merged: dict[str, Any] = {
        "done": max(f["done"] for f in figures),
        "total": max(f["total"] for f in figures),
        "unit": next((f["unit"] for f in figures if f["unit"]), ""),
        "gauges": figures[0]["gauges"],
    }
    for part in ("counts", "rates"):
        names = {name for f in figures for name in f[part]}
        merged[part] = {name: sum(f[part].get(name, 0) for f in figures) for name in sorted(names)}
    return merged
